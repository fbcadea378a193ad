"""The content of result.json, typed: what a run says of itself. `folder.py` writes it to disk."""

import functools
import json
import math
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from typing_extensions import TypeAliasType

from linear_lab import __version__

ENDED = ("completed", "diverged", "pruned")  # what is not trained again


def finite(value: Any) -> Any:
    """Replace NaN and infinity, for which JSON has no word, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unicode(value: Any) -> Any:
    """Replace what UTF-8 cannot write, as in some names of files."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


Number = Annotated[float | None, BeforeValidator(finite)]
Nested = TypeAliasType("Nested", "list[Nested] | Number")  # a number, or nested lists of numbers
Text = Annotated[str, BeforeValidator(unicode)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    """A model that takes no text for a number, and no number for a text."""

    model_config = ConfigDict(strict=True)


class Job(Strict):
    """What a run says of itself as a job of a sweep; ``group`` is what all its seeds share."""

    overrides: list[Text] | None = None
    metric: Text | None = None
    mode: Literal["min", "max"] | None = None
    group: Text | None = None
    problem: Text | None = None
    optimizer: Text | None = None
    lr: Number = None
    tags: Text | None = None
    pictures: bool = False


class Columns(Strict):
    """Names of the columns of x and y, and of the classes."""

    x: list[Text]
    y: list[Text]
    labels: list[Text] | None = None


class FirstStep(Strict):
    """Loss and gradient with which training began."""

    loss: Number
    gradient: dict[Text, Nested]


class Measured(Strict):
    """A model: its metrics, its parameters in the units of the file, and how far its loss is from the least one."""

    metrics: dict[Text, Number] = {}
    parameters: dict[Text, Nested] = {}
    excess_loss: Number = None


class Best(Measured):
    """The model of the best checkpoint."""

    step: Whole


class Record(Strict):
    """All that result.json holds, in its order; what is not set is not written."""

    status: Literal["running", "interrupted", "failed", "diverged", "pruned", "completed"] | None = None
    error: Text | None = None
    versions: dict[Text, Text] = {}
    token: Text | None = None  # by which loggers find the run again
    seed: Whole | None = None
    config_hash: Text | None = None
    job: Job | None = None
    git: Text | None = None
    columns: Columns | None = None
    rows: dict[Text, Whole] = {}
    loss_unit: Text | None = None
    stable_lr: Number = None
    weight_decay: Number = None
    initial: dict[Text, Nested] | None = None
    first_step: FirstStep | None = None
    steps: Whole | None = None
    optimum: dict[Text, Nested] | None = None
    metrics: dict[Text, Number] = {}
    parameters: dict[Text, Nested] = {}
    excess_loss: Number = None
    best: Best | None = None
    seconds: Number = None

    def updated(self, **fields: Any) -> "Record":
        """Return a record with other values in some fields."""
        return Record.model_validate(self.model_dump(exclude_unset=True) | fields)

    def as_json(self) -> bytes:
        """Write the record, one line per key."""
        fields = self.model_dump(mode="json", exclude_unset=True)
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in fields.items()]
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        OSError: if there is no such file.
        ValueError: if it is no record of a run.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")  # a pipe may be waited for without end
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


@functools.cache  # Python looks through the installed packages, 5 ms each
def versions() -> dict[str, str]:
    """Versions of what decides a run's digits."""
    python = ".".join(map(str, sys.version_info[:3]))
    packages = {name: version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"linear_lab": __version__, "python": python, **packages}
