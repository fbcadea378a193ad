"""The run folder: its names, its lock, and the writing of result.json. No other file knows the names in it."""

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
from linear_lab.runs.atomic import is_locked, no_link, refuse_link, replace, taken
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
LEFT = (RESULT, CONFIG, BEST, LAST, "events.out.tfevents.*")  # what a run leaves, by which another one is refused


class MissingError(UserError):
    """There is no run folder at ``path``."""

    def __init__(self, message: str, path: Path) -> None:
        super().__init__(message)
        self.path = path


class HeldError(UserError):
    """Another process trains in the run folder."""


class Run:
    """A run folder and its record.

    Attributes:
        path: the folder.
        record: what result.json says; without a status before the run starts.
        held: whether this process trains in the folder.
        begun: whether this process has recorded that training began; before, an error leaves the record as it was.
    """

    def __init__(self, path: Path) -> None:
        from linear_lab.runs.record import Record  # pydantic: not above, for --help

        self.path, self.record, self.held, self.begun = path, Record(), False, False

    @classmethod
    def open(cls, folder: str | Path, key: str = "run") -> Self:
        """Open a folder that a run has left; ``key`` is the override that names it.

        Raises:
            UserError: if there is no such folder, it holds no readable result.json, or a newer version made it.
        """
        path, name = Path(folder).expanduser(), f"{key}={folder}"
        if not path.is_dir():
            raise MissingError(f"{name}: there is no such folder; runs lie in outputs/runs/", path)
        run = cls(path)
        for file in map(path.joinpath, (RESULT, CONFIG, OVERRIDES, BEST, LAST, LOG)):
            if file.exists() and not (file.is_file() or file.is_dir()):  # a pipe may be waited for without end
                raise UserError(f"{file}: no regular file, so nothing is read from it; delete it")
        try:
            run.record = run.read()
            made_by = run.record.versions.get("linear_lab", "")
            if release(made_by) > release(__version__):
                raise UserError(f"{name}: made by linear_lab {made_by}, this is {__version__}; update linear_lab")
            if not (made_by and run.record.status):
                raise ValueError(f"it says no {'status' if made_by else 'version'}")
        except FileNotFoundError:
            raise UserError(f"{name}: no {RESULT} in it, so no run was started there; name a run folder") from None
        except (ValueError, OSError) as error:
            raise UserError(f"{name}: its {RESULT} cannot be read ({error}); train the run anew") from None
        if not (path / CONFIG).exists():
            raise UserError(f"{name}: no {CONFIG} in it, which says what the run is; train anew")
        return run

    def read(self) -> "Record":
        """Read the record; see `record.read`."""
        from linear_lab.runs import record

        return record.read(self.path / RESULT)

    @contextmanager
    def lock(self) -> Iterator[Self]:
        """Hold the folder for this process alone, however it ends, and read the record as it is then.

        Raises:
            HeldError: if another process holds it.
            UserError: if it cannot be written to, or a symbolic link leads from it to a place that would be.
        """
        for path in ((self.path / CONFIG).parent, (self.path / LAST).parent, self.path / LOG, self.path / "wandb"):
            refuse_link(path)
        try:
            file = no_link(self.path / LOCK, os.O_RDWR | os.O_CREAT)  # network file systems lock no folders
        except OSError as error:
            raise UserError(f"cannot write in {self.path}: {error.strerror}; choose another folder") from error
        try:
            if not taken(file):
                raise HeldError(f"{self.path}: another process trains in this folder; wait until it ends")
            self.held = True
            atomic.HELD.add(file)
            with suppress(OSError, ValueError):
                self.record = self.read()
            yield self
        finally:
            self.held = False
            atomic.HELD.discard(file)
            os.close(file)

    @classmethod
    def new(cls, parent: Path, optimizer: str, files: Mapping[str, str]) -> AbstractContextManager[Self]:
        """Make a run folder and claim it; it is hidden until its record is in it.

        Raises:
            UserError: if it cannot be made or has no room.
        """
        run = cls(parent)
        run.path = atomic.new(parent, optimizer, hidden=True)
        return run.claimed(files, run.path.with_name(run.path.name.removeprefix(".")))

    @contextmanager
    def claimed(self, files: Mapping[str, str] | None = None, name: Path | None = None) -> Iterator[Self]:
        """Hold a folder without a run, write ``files`` and the record of a new run, and record how the block ends.

        Args:
            files: what says what the run is, see `describe`.
            name: the folder is renamed to this before the block.

        Raises:
            HeldError: if another process trains in this folder.
            UserError: if it holds a run.
        """
        with self.lock():
            if left := [path.name for name in LEFT for path in self.path.glob(name)]:
                remedy = f"go on with it by resume={self.path}, or choose another folder"
                raise UserError(f"{self.path}: holds a run already ({left[0]}); {remedy}")
            self.describe(files or {})
            self.write(status="running")
            self.path = self.path.rename(name) if name else self.path
            with self.recording():
                yield self

    def describe(self, files: Mapping[str, str]) -> None:
        """Write what says what the run is: texts by the names of their files."""
        (self.path / CONFIG).parent.mkdir(exist_ok=True)
        for name, text in files.items():
            replace(self.path / name, text.encode(), sync=False)

    @contextmanager
    def recording(self) -> Iterator[Self]:
        """Hold the folder, log to its file, and record how the block ends, whatever ends it.

        A new run is ``running`` from the first moment; one that is resumed keeps its record until `begin`, so that a
        mistake in the command costs nothing. A block that succeeds has written its end state itself.

        Raises:
            HeldError: if another process trains in this folder.
        """
        with nullcontext() if self.held else self.lock(), log_to_file(self.path / LOG, terminal=True):
            started, before = time.perf_counter(), self.record.seconds or 0.0
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
                    with suppress(UserError):  # of a full disk, which the error says already
                        self.write(**end, seconds=before + time.perf_counter() - started)
                raise
            if (self.record.seconds or 0.0) == before:  # a block within this one may have counted its own
                self.write(seconds=before + time.perf_counter() - started)

    def add_to_job(self, overrides: Sequence[str]) -> None:
        """Add overrides to those of a sweep's job: another command trains it again from now on."""
        if self.record.job:
            added = [override for override in overrides if not override.startswith("resume=")]
            self.record.job.overrides = [*(self.record.job.overrides or []), *added]

    def clear(self) -> None:
        """Make room for a run from the start: delete what an earlier one left but its log.

        The record goes first, so that what a process killed meanwhile leaves is no run that looks whole.
        """
        others = [*self.path.glob("events.out.tfevents.*"), self.path / PREDICTIONS, self.path / OVERRIDES]
        for path in [self.path / RESULT, *others]:
            path.unlink(missing_ok=True)
        for folder in ((self.path / LAST).parent, *self.path.glob("version_*")):  # checkpoints, and those of CSVLogger
            shutil.rmtree(folder, ignore_errors=True)
        self.record = type(self.record)()

    def begin(self, config: str, overrides: Sequence[str], **fields: Any) -> None:
        """Record that training begins; keep the config, as YAML, and the overrides that have changed it since."""
        if not self.held:
            return
        files = {CONFIG: config}
        if overrides:
            import yaml  # not above: the leaderboard answers without

            typed = [*self.typed(), *overrides]
            files = {OVERRIDES: yaml.safe_dump(typed, allow_unicode=True, width=sys.maxsize), **files}
        self.describe(files)
        self.write(status="running", **fields)

    def typed(self) -> list[str]:
        """Return the overrides that the run has kept; none where their file is damaged."""
        import yaml

        with suppress(OSError, ValueError, RecursionError, yaml.YAMLError):
            kept = yaml.safe_load((self.path / OVERRIDES).read_text())
            if isinstance(kept, list) and all(isinstance(override, str) for override in kept):
                return kept
        return []

    def write(self, **fields: Any) -> None:
        """Put the fields into the record, and replace result.json atomically if this process holds the folder."""
        if fields.get("status") == "running":
            from linear_lab.runs.record import versions

            self.begun, fields = True, {"error": None, "versions": versions(), **fields}
        self.record = self.record.updated(**fields)
        if self.held:
            replace(self.path / RESULT, self.record.as_json())

    def checkpoint(self, which: str) -> Path | None:
        """Where the best or the last checkpoint lies, or None."""
        path = self.path / {"best": BEST, "last": LAST}[which]
        return path if path.exists() else None


def is_held(folder: Path) -> bool:
    """Tell whether a process trains in a run folder now."""
    return is_locked(folder / LOCK)


def release(version: str) -> tuple[int, ...]:
    """``0.10.2`` as numbers that compare."""
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def git_revision() -> str | None:
    """Return the commit of the project's own checkout, ``-dirty`` if files were changed since; None outside git."""
    if CHECKOUT is None:  # an environment may lie in another project's checkout
        return None
    command = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
