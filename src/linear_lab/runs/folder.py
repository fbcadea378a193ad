"""The run folder: its file names, its lock, and the writing of result.json."""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from linear_lab import CHECKOUT, UserError, __version__
from linear_lab.runs import atomic
from linear_lab.runs.atomic import is_locked, no_link, refuse_link, replace, try_lock
from linear_lab.runs.log import log_to_file

if TYPE_CHECKING:
    from linear_lab.runs.record import Record

RESULT = "result.json"
CONFIG, OVERRIDES, HYDRA = ".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml"
BEST, LAST = "checkpoints/best.ckpt", "checkpoints/last.ckpt"
PREDICTIONS = "predictions.csv"
TRUSTED = ("linear_lab.", "torch.", "lightning.")  # packages whose classes a saved config may name
TARGET = re.compile(r"_target_\s*[:=]\s*['\"]?([\w.]+)")
Trust = str | Sequence[str] | None  # dotted names of classes that a saved config may name
LOCK = ".lock"
LOG = "train.log"
RUN_FILES = (RESULT, CONFIG, BEST, LAST, "events.out.tfevents.*")  # a folder with any of these holds a run


class MissingError(UserError):
    """The run folder ``path`` does not exist."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class HeldError(UserError):
    """Another process trains in the run folder."""


class Run:
    """A run folder and its record.

    Attributes:
        path: the folder.
        record: the content of result.json; its status is None before the run starts.
        held: whether this process holds the lock of the folder.
        begun: whether this process has set the status to ``running``; until then, an error leaves the record unchanged.
    """

    def __init__(self, path: Path) -> None:
        from linear_lab.runs.record import Record  # not at the top, since pydantic would slow down --help

        self.path, self.record, self.held, self.begun = path, Record(), False, False
        self.started: float | None = None  # by perf_counter; of a resumed run so early that earlier seconds count

    @classmethod
    def open(cls, folder: str | Path, key: str = "run") -> Self:
        """Open the folder of a run; ``key`` is the override that names the folder in error messages.

        Raises:
            UserError: if the folder, its result.json or its config cannot be read, or a newer linear_lab wrote it.
        """
        path, name = Path(folder).expanduser(), f"{key}={folder}"
        if not path.is_dir():
            raise MissingError(f"{name}: there is no such folder; runs are in outputs/runs/", path)
        run = cls(path)
        for file in map(path.joinpath, (RESULT, CONFIG, OVERRIDES, BEST, LAST, LOG)):
            if file.exists() and not (file.is_file() or file.is_dir()):  # reading from a pipe could block forever
                raise UserError(f"{file}: it is not a regular file, so it is not read; delete it")
        try:
            run.record = run.read()
            made_by = run.record.versions.get("linear_lab", "")
            if release(made_by) > release(__version__):
                raise UserError(f"{name}: linear_lab {made_by} wrote it, this is {__version__}; update linear_lab")
            if not (made_by and run.record.status):
                raise ValueError(f"it has no {'status' if made_by else 'version'}")
        except FileNotFoundError:
            raise UserError(f"{name}: it has no {RESULT}, so it is not a run folder; name another folder") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{name}: its {RESULT} cannot be read ({error}); train a new run") from None
        if not (path / CONFIG).exists():
            raise UserError(f"{name}: it has no {CONFIG}, so the run cannot be built; train a new run")
        return run

    def read(self) -> "Record":
        """Read the record; see `record.read`."""
        from linear_lab.runs import record

        return record.read(self.path / RESULT)

    @contextmanager
    def lock(self) -> Iterator[Self]:
        """Lock the folder for this process, however it ends, and read the record under the lock.

        Raises:
            HeldError: if another process holds the lock.
            UserError: if the folder is not writable, or a file or folder that is written in it is a symbolic link.
        """
        for path in ((self.path / CONFIG).parent, (self.path / LAST).parent, self.path / LOG, self.path / "wandb"):
            refuse_link(path)
        try:
            file = no_link(self.path / LOCK, os.O_RDWR | os.O_CREAT)  # a file, since network drives lock no folders
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; choose another folder") from error
        try:
            if not try_lock(file):
                raise HeldError(f"{self.path}: another process trains in this folder; wait until it ends")
            self.held = True
            atomic.HELD_LOCKS.add(file)
            with suppress(OSError, ValueError):
                self.record = self.read()
            yield self
        finally:
            self.held = False
            atomic.HELD_LOCKS.discard(file)
            os.close(file)

    @classmethod
    def new(cls, parent: Path, optimizer: str, files: Mapping[str, str]) -> AbstractContextManager[Self]:
        """Make a new run folder and enter `claimed`. The folder's name begins with a dot until its record is written.

        Raises:
            UserError: if the folder cannot be made, or its disk is full.
        """
        run = cls(parent)
        run.path = atomic.new(parent, optimizer, hidden=True)
        return run.claimed(files, run.path.with_name(run.path.name.removeprefix(".")))

    @contextmanager
    def claimed(self, files: Mapping[str, str] | None = None, name: Path | None = None) -> Iterator[Self]:
        """Lock an unused folder, write ``files`` and the record of a new run, and record how the block ends.

        Args:
            files: the files that describe the run; see `describe`.
            name: the path to which the folder is renamed before the block.

        Raises:
            HeldError: if another process trains in this folder.
            UserError: if the folder holds a run.
        """
        with self.lock():
            if existing := [path.name for name in RUN_FILES for path in self.path.glob(name)]:
                remedy = f"continue it with resume={self.path}, or choose another folder"
                raise UserError(f"{self.path}: it already holds a run ({existing[0]}); {remedy}")
            self.describe(files or {})
            self.write(status="running")
            self.path = self.path.rename(name) if name else self.path
            with self.recording():
                yield self

    def describe(self, files: Mapping[str, str]) -> None:
        """Write the files that describe the run, such as its config: a mapping from file name to text."""
        (self.path / CONFIG).parent.mkdir(exist_ok=True)
        for name, text in files.items():
            replace(self.path / name, text.encode(), sync=False)

    @contextmanager
    def recording(self) -> Iterator[Self]:
        """Lock the folder, log to its train.log, and record how the block ends: also by an error or an interrupt.

        The status of a new run is ``running`` at once. A resumed run keeps its record until `begin`, so that a mistake
        in the command changes nothing. When the block succeeds, it has written the final status itself.

        Raises:
            HeldError: if another process trains in this folder.
        """
        with nullcontext() if self.held else self.lock(), log_to_file(self.path / LOG, terminal=True):
            self.started = self.started or time.perf_counter() - (self.record.seconds or 0.0)
            if self.record.status is None:
                self.write(status="running")
            try:
                yield self
            except BaseException as error:
                message = str(error) if isinstance(error, UserError) else repr(error)
                end: dict[str, Any] = {"status": "failed", "error": message}
                if isinstance(error, (KeyboardInterrupt, SystemExit)):
                    end = {"status": "interrupted", "error": None}
                if self.begun and self.record.status == "running":
                    with suppress(UserError):  # if the disk is full, `error` says so already
                        self.write(**end)
                raise

    def add_to_job(self, overrides: Sequence[str]) -> None:
        """Append overrides to those recorded for a job, so that the leaderboard suggests the command as it is now."""
        if self.record.job:
            added = [override for override in overrides if not override.startswith("resume=")]
            self.record.job.overrides = [*(self.record.job.overrides or []), *added]

    def clear(self) -> None:
        """Delete all files of an earlier run except its log, so that the run can start again.

        The record is deleted first: if the process is killed meanwhile, the folder does not look like a complete run.
        """
        others = [*self.path.glob("events.out.tfevents.*"), self.path / PREDICTIONS, self.path / OVERRIDES]
        for path in [self.path / RESULT, *others]:
            path.unlink(missing_ok=True)
        for folder in ((self.path / LAST).parent, *self.path.glob("version_*")):  # version_*: folders of CSVLogger
            shutil.rmtree(folder, ignore_errors=True)
        self.record = type(self.record)()

    def begin(self, config: str, overrides: Sequence[str], **fields: Any) -> None:
        """Record that training begins; save the config, as YAML, and append the overrides of this command."""
        if not self.held:
            return
        files = {CONFIG: config}
        if overrides:
            import yaml  # not at the top, since the leaderboard does not need it

            typed = [*self.saved_overrides(), *overrides]
            files = {OVERRIDES: yaml.safe_dump(typed, allow_unicode=True, width=sys.maxsize), **files}
        self.describe(files)
        self.write(status="running", **fields)

    def saved_overrides(self) -> list[str]:
        """Return the saved overrides of the run; an empty list if their file is missing or damaged."""
        import yaml

        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            overrides = yaml.safe_load((self.path / OVERRIDES).read_text())
            if isinstance(overrides, list) and all(isinstance(override, str) for override in overrides):
                return overrides
        return []

    def write(self, **fields: Any) -> None:
        """Update fields of the record, and replace result.json atomically if this process holds the lock."""
        if fields.get("status") == "running":
            from linear_lab.runs.record import versions

            self.begun, fields = True, {"error": None, "versions": versions(), **fields}
        elif "status" in fields and self.started:
            fields = {
                "seconds": time.perf_counter() - self.started,
                **fields,
            }  # in the same write: a kill loses neither
        self.record = self.record.updated(**fields)
        if self.held:
            replace(self.path / RESULT, self.record.as_json())

    def checkpoint(self, which: str) -> Path | None:
        """Return the path of the ``best`` or ``last`` checkpoint, or None if it does not exist."""
        path = self.path / {"best": BEST, "last": LAST}[which]
        return path if path.exists() else None


def is_held(folder: Path) -> bool:
    """Return whether some process holds the lock of a run folder, and so trains in it."""
    return is_locked(folder / LOCK)


def release(version: str) -> tuple[int, ...]:
    """Convert a version such as ``0.10.2`` to numbers, which compare in order."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def git_revision() -> str | None:
    """Return the commit of this project's checkout, with ``-dirty`` if files have changed; None outside of git."""
    if CHECKOUT is None:  # an installed package: the nearest git repository could be another project's
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
