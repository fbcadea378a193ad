"""The typed content of result.json. `folder.py` writes it to disk."""

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

ENDED = ("completed", "diverged", "pruned")  # states of jobs that a sweep does not train again


def finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON cannot represent, by None."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def unicode(value: Any) -> Any:
    """Replace characters that UTF-8 cannot encode, such as those of undecodable file names."""
    return value.encode(errors="replace").decode() if isinstance(value, str) else value


Number = Annotated[float | None, BeforeValidator(finite)]
Nested = TypeAliasType("Nested", "list[Nested] | Number")  # a number, or nested lists of numbers
Text = Annotated[str, BeforeValidator(unicode)]
Whole = Annotated[int, Field(ge=0, lt=2**63)]


class Strict(BaseModel):
    """A pydantic model that converts no text to a number, and no number to text."""

    model_config = ConfigDict(strict=True)


class Job(Strict):
    """The fields of a job of a sweep; ``group`` is the fingerprint of its config without the seed."""

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
    """Loss and gradient of the first training step."""

    loss: Number
    gradient: dict[Text, Nested]


class Measured(Strict):
    """The metrics of a model, its parameters in the units of the data file, and its excess loss."""

    metrics: dict[Text, Number] = {}
    parameters: dict[Text, Nested] = {}
    excess_loss: Number = None


class Best(Measured):
    """The model of the best checkpoint."""

    step: Whole


class Record(Strict):
    """All fields of result.json, in the order in which they are written; fields that are not set are left out."""

    status: Literal["running", "interrupted", "failed", "diverged", "pruned", "completed"] | None = None
    error: Text | None = None
    versions: dict[Text, Text] = {}
    token: Text | None = None  # identifies the run to its loggers when it is resumed
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
        """Return a copy of the record with new values in some fields."""
        return Record.model_validate(self.model_dump(exclude_unset=True) | fields)

    def as_json(self) -> bytes:
        """Return the record as JSON, with one line per key."""
        fields = self.model_dump(exclude_unset=True)
        lines = [f"  {json.dumps(key)}: {json.dumps(value, allow_nan=False)}" for key, value in fields.items()]
        return ("{\n" + ",\n".join(lines) + "\n}\n").encode()


def read(path: Path) -> Record:
    """Read a record.

    Raises:
        OSError: if the file does not exist or cannot be read.
        ValueError: if it is not the record of a run.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is not a regular file")  # reading from a pipe could block forever
    try:
        return Record.model_validate_json(path.read_bytes())
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from None


@functools.cache  # looking up the version of a package takes 5 ms
def versions() -> dict[str, str]:
    """Return the versions of the packages that a run's numbers depend on, and of Python."""
    python = ".".join(map(str, sys.version_info[:3]))
    packages = {name: version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"linear_lab": __version__, "python": python, **packages}
