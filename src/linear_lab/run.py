"""The run folder: all that a run leaves. The only file that knows the names in it."""

import fcntl
import functools
import hashlib
import json
import math
import os
import random
import re
import string
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self

from linear_lab import UserError, __version__

RESULT = "result.json"
CONFIG, OVERRIDES = ".hydra/config.yaml", ".hydra/overrides.yaml"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
CHECKPOINTS = {"best": BEST, "last": LAST}
PREDICTIONS = "predictions.csv"
LONGEST_NAME = 120  # characters of a folder's name
ROOM = 1 << 20  # bytes that must be free before training starts: a run of a small model leaves less


class Run:
    """A run folder and its record.

    Attributes:
        path: the folder.
        record: what result.json says; empty before the run starts.
        held: whether this process trains in the folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.record: dict[str, Any] = {}
        self.held = False

    @classmethod
    def open(cls, folder: str | Path, key: str = "run") -> Self:
        """Open a folder that a run has left; ``key`` is the override that names it.

        Raises:
            UserError: if there is no such folder, it holds no readable result.json, or a newer version made it.
        """
        path = Path(folder).expanduser()
        if not path.is_dir():
            raise UserError(f"{key}={folder}: there is no such folder; runs lie in outputs/runs/")
        try:
            record = json.loads((path / RESULT).read_text())
            made_by = record["versions"]["linear_lab"]
        except FileNotFoundError:
            raise UserError(
                f"{key}={folder}: no {RESULT} in it, so no run was started there; name a run folder"
            ) from None
        except (ValueError, TypeError, KeyError, OSError) as error:
            raise UserError(
                f"{key}={folder}: its {RESULT} cannot be read ({error}); the run has to be trained anew"
            ) from None
        if release(made_by) > release(__version__):
            raise UserError(f"{key}={folder}: made by linear_lab {made_by}, this is {__version__}; update linear_lab")
        if not (path / CONFIG).exists():
            raise UserError(f"{key}={folder}: no {CONFIG} in it, which says what the run is; train anew")
        run = cls(path)
        run.record = record
        return run

    @contextmanager
    def recording(self) -> Iterator[Self]:
        """Hold the folder for this process alone, and record how the block ends, whatever ends it.

        A new run is ``running`` from the first moment; one that is resumed keeps its record until `begin`, so that a
        mistake in the command costs nothing. A block that ends regularly has written its end state itself.

        Raises:
            UserError: if another process trains in this folder.
        """
        started, before = time.perf_counter(), self.record.get("seconds", 0.0)
        folder = os.open(self.path, os.O_RDONLY)  # the kernel frees the lock when the process ends, however it ends
        try:
            try:
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UserError(f"{self.path}: another process trains in this folder; wait until it ends") from None
            self.held = True
            if not self.record:
                self.write(status="running", error=None, versions=versions())
            try:
                yield self
            except BaseException as error:
                interrupted = isinstance(error, (KeyboardInterrupt, SystemExit))
                message = str(error) if isinstance(error, UserError) else repr(error)
                if self.record["status"] == "running":
                    self.record["status"] = "interrupted" if interrupted else "failed"
                    self.record["seconds"] = before + time.perf_counter() - started
                    self.record["error"] = None if interrupted else message
                with suppress(UserError):  # a full disk is what the error says already
                    self.write()
                raise
            self.write(seconds=before + time.perf_counter() - started)
        finally:
            self.held = False
            os.close(folder)

    def begin(self, config: str, overrides: Sequence[str], **fields: Any) -> None:
        """Say that training begins now, and keep the config, as YAML, and what has changed it since the run began."""
        if not self.held:
            return
        (self.path / CONFIG).parent.mkdir(exist_ok=True)
        replace(self.path / CONFIG, config.encode())
        if overrides:
            known = (self.path / OVERRIDES).read_text() if (self.path / OVERRIDES).exists() else ""
            lines = [known.rstrip() if known.strip() != "[]" else "", *(f"- {override}" for override in overrides)]
            replace(self.path / OVERRIDES, "".join(f"{line}\n" for line in lines if line).encode())
        self.write(status="running", error=None, versions=versions(), **fields)

    def write(self, **fields: Any) -> None:
        """Put the fields into the record, and replace result.json atomically if this process holds the folder."""
        self.record |= fields
        if self.held:
            text = json.dumps(finite(self.record), indent=2, allow_nan=False)
            replace(self.path / RESULT, (text + "\n").encode())

    def checkpoint(self, which: str) -> Path | None:
        """Where the best or the last checkpoint lies, or None."""
        path = self.path / CHECKPOINTS[which]
        return path if path.exists() else None

    def config(self) -> str:
        """Return the run's own config, as YAML."""
        return (self.path / CONFIG).read_text()


@functools.cache  # Hydra asks more than once; one process makes one folder
def new(parent: str, optimizer: str = "") -> str:
    """Make ``<parent>/<UTC time>-<4 random characters>-<optimizer>``: atomically, so that no other launch has the same.

    Raises:
        UserError: if it cannot be made or has no room, before anything is trained.
    """
    folder = Path(parent).expanduser()
    random_characters = random.SystemRandom()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        while True:
            name = "".join(random_characters.choices(string.ascii_lowercase + string.digits, k=4))
            path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}{f'-{plain(optimizer)}' if optimizer else ''}"
            with suppress(FileExistsError):
                path.mkdir()
                break
    except OSError as error:
        raise UserError(
            f"no run can be kept in {parent} ({error.strerror}: {error.filename or folder}); "
            "choose another folder with output_root=<folder>"
        ) from error
    try:
        replace(path / "room", bytes(ROOM))
    except UserError:
        path.rmdir()
        raise
    (path / "room").unlink()
    return str(path)


def job_name(number: int, optimizer: str, overrides: Sequence[str], unnamed: Sequence[str] = ()) -> str:
    """Name the folder of a sweep's job: its number, its optimizer, and what was typed, in that order.

    Args:
        number: of the job.
        optimizer: the option that was chosen.
        overrides: what was typed, for this job.
        unnamed: keys of overrides to leave out: those that are the same in all jobs.

    >>> job_name(3, "adam", ["optimizer=adam", "optimizer.lr=0.1", "data.path=a/b c.csv", "seed=1"], ["seed"])
    '3-adam-lr=0.1-path=a_b_c.csv'
    """
    typed = [item.lstrip("+~").partition("=") for item in overrides]
    parts = [
        f"{key.rpartition('.')[2]}{equals}{value}" for key, equals, value in typed if key not in {"optimizer", *unnamed}
    ]
    return plain("-".join([str(number), optimizer, *parts]))


def plain(name: str) -> str:
    """Make a name that any file system takes, and that TensorBoard does not nest."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "_", name)[:LONGEST_NAME].rstrip(".-")


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a process killed meanwhile, finds it whole: the old one or the new one.

    Raises:
        UserError: if the disk is full, or does not let itself be written.
    """
    with writing(path, "make room, or choose another folder with output_root=<folder>") as part:
        part.write_bytes(content)


@contextmanager
def writing(path: Path, remedy: str = "make room, or choose another file with output=<file>") -> Iterator[Path]:
    """Give a file beside ``path`` to write to, which takes its place, on disk, once the block has ended well.

    Raises:
        UserError: as `replace`.
    """
    part = path.with_name(path.name + ".part")
    try:
        yield part
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error
    finally:
        part.unlink(missing_ok=True)


def config_hash(config: dict[str, Any]) -> str:
    """Fingerprint of what decides a run's numbers: not of where it lies and what it shows."""
    free = {"output_root", "resume", "console", "logger"}
    deciding = {key: value for key, value in config.items() if key not in free}
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()[:16]


def release(version: str) -> tuple[int, ...]:
    """``0.10.2`` as numbers that compare."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def finite(value: Any) -> Any:
    """Replace numbers that JSON has no word for (NaN, infinity) with None."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Versions of what decides a run's digits."""
    python = ".".join(map(str, sys.version_info[:3]))
    packages = {name: version(name) for name in ("torch", "lightning", "hydra-core")}
    return {"linear_lab": __version__, "python": python, **packages}


def git_revision() -> str | None:
    """Return the commit of the project's own checkout, ``-dirty`` if files were changed since; None outside git."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
