"""A ``pickle_module`` for `torch.save`: of many checkpoints that differ in numbers alone only the first is pickled.

torch asks Python about each of the several hundred objects in a checkpoint. Here the first of its shape leaves its
pickle with blanks, and the numbers of the others are filled in.
"""

import functools
import io
import pickle
import re
import struct
from collections.abc import Iterator
from typing import IO, Any

from torch import Tensor

BLANK = b"@blnk"  # and three bytes that count: a float, as it stands in a pickle behind a G
BLANKS = re.compile(b"G" + BLANK + b"(...)", re.DOTALL)
NUMBERS = frozenset((float, int, bool, type(None)))
CONTAINERS = frozenset((dict, list, tuple))
Pieces = list[bytes] | None


class Pickler:
    """Pickles what `pickle.Pickler` does; what occurs twice in a tree of containers is pickled twice.

    Args:
        file: to write to.
        protocol: of pickle.

    Attributes:
        templates: what is between the blanks, by shape; None for a shape without.
    """

    templates: dict[Any, Pieces] = {}  # noqa: RUF012  # torch wants a class, and makes one pickler for each file

    def __init__(self, file: IO[bytes], protocol: int) -> None:
        self.file, self.protocol = file, protocol

    def persistent_id(self, obj: Any) -> Any:
        """Return what stands for a tensor's storage: torch's subclass keeps that elsewhere."""
        return None

    def dump(self, obj: Any) -> None:
        """Write an object."""
        shape: list[Any] = [self.protocol]
        numbers: list[Any] = []
        self.describe([obj], shape, numbers)
        if Unknown in shape:
            self.file.write(self.pickled(obj))
            return
        if (key := tuple(shape)) not in self.templates:
            self.templates[key] = self.template(obj, len(numbers))
        if (pieces := self.templates[key]) is None:
            self.file.write(self.pickled(obj))
            return
        parts = [pieces[0]]
        for number, piece in zip(numbers, pieces[1:], strict=True):
            parts += b"G" + struct.pack(">d", number) if type(number) is float else opcodes(number), piece
        self.file.write(b"".join(parts))

    def describe(self, node: Any, shape: list[Any], numbers: list[Any]) -> None:
        """Sort a container's items into its shape, which holds all but numbers, and numbers."""
        shape += type(node), len(node)
        if type(node) is dict:
            shape += node
            node = node.values()
        for item in node:
            kind = type(item)
            if kind in NUMBERS:
                shape.append(None)
                numbers.append(item)
            elif kind is str:
                shape.append(item)
            elif kind in CONTAINERS:
                self.describe(item, shape, numbers)
            elif kind is Tensor:
                rebuild, (storage, *layout, _) = item.__reduce_ex__(self.protocol)
                shape += rebuild, *self.persistent_id(storage), *layout
            else:
                shape.append(Unknown)

    def template(self, obj: Any, count: int) -> Pieces:
        """Return what is between the blanks of an object."""
        blanks = (struct.unpack(">d", BLANK + which.to_bytes(3))[0] for which in range(count))
        pieces = BLANKS.split(self.pickled(copied(obj, blanks)))
        in_order = pieces[1::2] == [which.to_bytes(3) for which in range(count)]  # none of the texts looks like one
        return pieces[::2] if in_order else None

    def pickled(self, obj: Any) -> bytes:
        """Pickle as Python does."""
        content = io.BytesIO()
        pickler = pickle.Pickler(content, self.protocol)
        pickler.persistent_id = self.persistent_id  # type: ignore[method-assign]
        pickler.dump(obj)
        return content.getvalue()


class Unknown:
    """Stands in a shape for what is no container, number, text or tensor."""


def copied(node: Any, numbers: Iterator[float]) -> Any:
    """Copy a tree, with other numbers."""
    if type(node) is dict:
        return {key: copied(item, numbers) for key, item in node.items()}
    if type(node) in CONTAINERS:
        return type(node)(copied(item, numbers) for item in node)
    return node if type(node) in (str, Tensor) else next(numbers)


@functools.lru_cache(typed=True)  # 1 is not True
def opcodes(number: int | None) -> bytes:
    """Write a number as pickle does, without its frame: two bytes of protocol, and the final stop."""
    return pickle.dumps(number, 2)[2:-1]
