"""The base class of all data sources: parts, units, batches."""

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule

from linear_lab.data.batches import Batches, Part
from linear_lab.data.schema import Schema, standardize

PARTS = ("train", "val", "test")
EVALUATION_ROWS = 65_536  # rows per batch of an evaluation; it bounds memory and does not change results


class LinearData(LightningDataModule, ABC):
    """Base class of data sets that fit into memory and have the parts train and, optionally, val and test.

    A subclass implements ``load``, which returns the rows. The model is fitted to ``train``. Each validation measures
    ``train`` and ``val``, so that both losses belong to the same weights. The test at the end measures all parts.

    Args:
        batch_size: rows per step, in a new random order each epoch; None takes all rows in the order of the data.
        order_seed: the seed of that random order.

    Raises:
        ValueError: if an argument is out of range; the message names it.

    Attributes:
        raw: x and y of each part, in their original units, float64; class labels are int64 indices.
        parts: x and y as training sees them: standardized by the units of the schema, with the given dtype.
        schema: names and units of the columns; unless ``load`` sets it, they are called x and y and not standardized.
        notes: warnings about the data for the user, such as dropped rows.
        classification: whether y must hold class indices; set it before ``setup`` if the data allow both.
        dtype: dtype of the batches; set it before ``setup``.
        by_part: True if a validation measures train and val, and a test all parts, as `SupervisedModule` expects;
            False if a validation measures val, and a test measures test.
        in_features: F, the number of columns of x.
        out_features: T, the number of columns of y, or the number of classes.
    """

    def __init__(self, batch_size: int | None = None, order_seed: int = 0) -> None:
        super().__init__()
        if batch_size is not None:
            check_whole("batch_size", batch_size, 1, ", or null for all rows")
        check_whole("order_seed", order_seed, 0)
        self.batch_size = batch_size
        self.order_seed = order_seed
        self.raw: dict[str, Part] = {}
        self.parts: dict[str, Part] = {}
        self._on_device: dict[tuple[str, torch.device], Part] = {}
        self.schema = Schema.plain(0, 0)
        self.notes: list[str] = []
        self.classification = False
        self.dtype = torch.float32
        self.by_part = True

    @abstractmethod
    def load(self) -> dict[str, Part]:
        """Return the parts by name: ``train``, and optionally ``val`` and ``test``."""

    def setup(self, stage: str | None = None) -> None:
        """Load the parts once, and standardize them by the schema's units.

        Raises:
            ValueError: if x and y of a part do not fit together, or if a value is not finite in the dtype; the message
                names both shapes, or the value and its column.
        """
        if self.parts:
            return
        raw = {name: (x.double(), y.double() if y.ndim > 1 else y) for name, (x, y) in self.load().items()}
        if "train" not in raw:
            raise ValueError(f"load returned the parts {', '.join(raw)}, but not train; add a train part")
        features, targets = (values.shape[1:] for values in raw["train"])
        for name, (x, y) in raw.items():
            shapes = f"got x {tuple(x.shape)} and y {tuple(y.shape)} of {y.dtype}"
            if y.ndim < 2 and (y.ndim, y.dtype) != (1, torch.int64):
                raise ValueError(f"{name} needs y (B, T) with numbers, or (B,) with int64 class labels; {shapes}")
            if x.ndim != 2 or x.shape != (len(y), *features) or y.shape != (len(x), *targets) or not len(x):
                wanted = [", ".join(["B", *map(str, shape)]) for shape in (features or ["F"], targets)]
                raise ValueError(
                    f"{name} needs x ({wanted[0]}) and y ({wanted[1]}) with the same number of rows B of at least 1; "
                    f"{shapes}"
                )
            if not targets and y.min() < 0:
                raise ValueError(f"{name} needs class labels of at least 0, got {y.min()}")
        if not self.schema.x:
            classes = 1 + max(int(y.max()) for _, y in raw.values()) if not targets else 0
            self.schema = Schema.plain(features[0], sum(targets) or 1, [str(k) for k in range(classes)] or None)
        self.raw, self.in_features = raw, features[0]
        self.out_features = len(self.schema.labels) if self.schema.labels else len(self.schema.y)
        self.parts = {name: self._standardized(name) for name in raw}

    def state_dict(self) -> dict[str, str]:
        # Lightning saves this in the checkpoint; a resumed run compares it with its data.
        return {"fingerprint": self.fingerprint}

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 hash of the names, shapes and values of all parts, in their original units."""
        digest = hashlib.sha256()
        for name, part in self.raw.items():
            for values in part:
                digest.update(f"{name} {tuple(values.shape)}".encode())
                digest.update(values.numpy().data)
        return digest.hexdigest()

    def on_device(self, name: str) -> Part:
        """Return a part, moved once to the trainer's GPU if it takes less than half of the free memory there."""
        device = self.trainer.strategy.root_device if self.trainer else torch.device("cpu")
        if (name, device) not in self._on_device:
            x, y = self.parts[name]
            fits = device.type == "cuda" and x.nbytes + y.nbytes < torch.cuda.mem_get_info(device)[0] / 2
            with torch.inference_mode(False):  # a validation calls this first; its tensors could not be trained on
                self._on_device[name, device] = (x.to(device), y.to(device)) if fits else (x, y)
        return self._on_device[name, device]

    def train_dataloader(self) -> Batches:
        x, y = self.on_device("train")
        size, seed = (self.batch_size, self.order_seed) if self.batch_size else (len(x), None)
        trainer = self.trainer
        if not trainer:
            return Batches(x, y, size, seed=seed)
        ranks = {"rank": trainer.global_rank, "world_size": trainer.world_size}
        return Batches(x, y, size, seed=seed, epoch=lambda: trainer.current_epoch, **ranks)

    def val_dataloader(self) -> dict[str, Batches] | list[Batches]:
        return self._loaders([name for name in self.parts if name != "test"] if self.by_part else ["val"])

    def test_dataloader(self) -> dict[str, Batches] | list[Batches]:
        return self._loaders([*self.parts] if self.by_part else ["test"])

    def _loaders(self, names: list[str]) -> dict[str, Batches] | list[Batches]:
        # Each process measures whole parts, so that the metrics do not depend on the number of processes.
        loaders = {name: Batches(*self.on_device(name), EVALUATION_ROWS) for name in names if name in self.parts}
        return loaders if self.by_part else [*loaders.values()]

    def _standardized(self, name: str) -> Part:
        """Standardize a part in float64, then round it to the dtype."""
        (x, y), schema = self.raw[name], self.schema
        inputs = standardize(x, *schema.x_units).to(self.dtype)
        targets = standardize(y, *schema.y_units).to(self.dtype) if y.is_floating_point() else y
        for values, columns, raw in ((inputs, schema.x, x), (targets, schema.y, y)):
            if values.is_floating_point() and not values.isfinite().all():
                row, column = (~values.isfinite()).nonzero()[0].tolist()
                value = raw[row, column]
                reason = f"which is too large for {self.dtype}; try trainer.precision=64-true, or correct the value"
                reason = reason if value.isfinite() else "which is not finite; correct or leave out the row"
                raise ValueError(f"{name} has {value:g} in column {columns[column]}, {reason}")
        return inputs, targets


def check_whole(name: str, value: object, low: int, otherwise: str = "") -> None:
    if type(value) is not int or value < low:
        raise ValueError(f"{name} must be a whole number of at least {low}{otherwise}, got {value}")


def check_seed(seed: object) -> None:
    if type(seed) is not int or not 0 <= seed < 2**63:
        raise ValueError(f"seed must be a whole number from 0 to 2^63 - 1, got {seed}")


def split(rows: int, fractions: Sequence[float]) -> dict[str, slice]:
    """Split rows into the slices train, val and test, each at most one row off its fraction; 0 leaves a part out.

    Raises:
        ValueError: if the fractions are not three shares that sum to 1, or if a part with a share would be empty.

    >>> split(10, [0.7, 0.3, 0])
    {'train': slice(0, 7, None), 'val': slice(7, 10, None)}
    """
    fractions = list(fractions) if isinstance(fractions, Sequence) else [fractions]
    shares = [share for share in fractions if isinstance(share, (int, float)) and 0 <= share <= 1]
    if len(shares) != 3 or len(fractions) != 3 or abs(sum(shares) - 1) > 1e-6 or not shares[0]:
        raise ValueError(
            f"fractions must be three shares of train, val and test that sum to 1, with train above 0, got {fractions}"
        )
    bounds = [round(rows * sum(shares[:k])) for k in range(4)]
    parts = {}
    for name, share, start, stop in zip(PARTS, shares, bounds, bounds[1:], strict=False):
        if share and start == stop:
            raise ValueError(f"fractions={fractions} leave {name} without a row of the {rows}; change its share")
        if share:
            parts[name] = slice(start, stop)
    return parts
