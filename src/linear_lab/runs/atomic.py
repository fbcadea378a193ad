"""Folders and files that a process killed at any moment leaves whole."""

import fcntl
import functools
import os
import random
import re
import string
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from linear_lab import UserError

LONGEST_NAME = 120  # characters of a folder's name
ROOM = 1 << 20  # bytes that must be free before training starts: a run of a small model leaves less
ROOM_REMEDY = "make room, or choose another folder with output_root=<folder>"
PATIENCE = 0.5  # seconds to wait for a lock: who looks whether one is held takes it for a moment


@functools.cache  # Hydra asks more than once; one process makes one folder
def new(parent: str, optimizer: str = "") -> str:
    """Make ``<parent>/<UTC time>-<4 random characters>-<optimizer>``: atomically, so that no other launch has the same.

    Raises:
        UserError: if it cannot be made or has no room, before anything is trained.
    """
    folder = Path(parent).expanduser()
    random_characters = random.SystemRandom()
    while True:
        name = "".join(random_characters.choices(string.ascii_lowercase + string.digits, k=4))
        path = folder / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}{f'-{plain(optimizer)}' if optimizer else ''}"
        with suppress(FileExistsError):
            make(path)
            return str(path)


def make(path: Path) -> None:
    """Make a folder for what shall be trained, in which there is room.

    Raises:
        FileExistsError: if it is there already.
        UserError: if it cannot be made or has no room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir()
    except FileExistsError as error:
        if path.is_dir():
            raise
        raise no_folder(path, error) from error
    except OSError as error:
        raise no_folder(path, error) from error
    try:
        check_room(path)
    except UserError:
        with suppress(OSError):  # another process may be in it already
            path.rmdir()
        raise


def no_folder(path: Path, error: OSError) -> UserError:
    """Say why nothing can be kept there."""
    return UserError(
        f"no run can be kept in {path.parent} ({error.strerror}: {error.filename or path}); "
        "choose another folder with output_root=<folder>"
    )


def check_room(folder: Path) -> None:
    """Refuse a disk without room, before anything is trained.

    Raises:
        UserError: naming the folder.
    """
    try:
        with tempfile.TemporaryFile(dir=folder) as file:  # without a name: others may look at the same time
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(
            f"cannot write in {folder}: {error.strerror or error}; "
            "make room, or choose another folder with output_root=<folder>"
        ) from error


def plain(name: str) -> str:
    """Make a name that any file system takes, and that TensorBoard does not nest."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "_", name)[:LONGEST_NAME].rstrip(".-")


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a process killed meanwhile, finds it whole: the old one or the new one.

    Raises:
        UserError: if the disk is full, or does not let itself be written.
    """
    with writing(path, ROOM_REMEDY) as part:
        part.write_bytes(content)


def write_all(contents: dict[Path, bytes]) -> None:
    """Write files that nobody reads before a record says so; all are on disk afterwards.

    One call of sync for all: each file's own fsync would be most of what it costs to write.

    Raises:
        UserError: as `replace`.
    """
    path = Path()
    try:
        for path, content in contents.items():
            path.write_bytes(content)
        os.sync()
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> UserError:
    """Say that a file could not be written."""
    remedy = "make room, or choose another folder with output_root=<folder>"
    return UserError(f"cannot write {path}: {error.strerror or error}; {remedy}")


def replace_all(contents: dict[Path, bytes]) -> None:
    """Replace many files as `replace` does, all on disk before the first takes its place.

    Raises:
        UserError: as `replace`.
    """
    parts = {path: path.with_name(path.name + ".part") for path in contents}
    try:
        write_all({parts[path]: content for path, content in contents.items()})
        for path, part in parts.items():
            part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)


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


def taken(file: int) -> bool:
    """Take the lock of an open file, if no other process holds it for longer than a glance."""
    for _ in range(50):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(PATIENCE / 50)
    return False


def is_locked(path: Path) -> bool:
    """Tell whether some process holds the lock of a file."""
    try:
        file = os.open(path, os.O_RDWR)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(file)
    return False
