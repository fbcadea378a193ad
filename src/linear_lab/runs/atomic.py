"""Folders, files and locks that stay whole when a process is killed at any moment."""

import fcntl
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
from typing import BinaryIO

from linear_lab import UserError

LONGEST_NAME = 120  # characters of a folder's name
ROOM = 1 << 20  # bytes that must be free before training starts: a run of a small model needs less
ROOM_REMEDY = "make room, or choose another folder with output_root=<folder>"
PART = ".linear_lab-"  # begins the names of files that are being written
PATIENCE = 0.5  # seconds to retry a lock: `is_locked` of another process takes it briefly


def new(parent: str | Path, optimizer: str = "", *, hidden: bool = False) -> Path:
    """Make the folder ``<parent>/<UTC time>-<4 random characters>-<optimizer>``, which no other launch shares.

    The name of a ``hidden`` one begins with a dot, until `Run.new` has filled it.

    Raises:
        UserError: if it cannot be made or has no room.
    """
    random_characters = random.SystemRandom()
    while True:
        name = "".join(random_characters.choices(string.ascii_lowercase + string.digits, k=4))
        suffix = f"-{plain(optimizer)}" if optimizer else ""
        path = Path(parent).expanduser() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}{suffix}"
        place = path.with_name(f".{path.name}") if hidden else path
        with suppress(FileExistsError):
            make(place)
            if place == path or not path.exists():
                return place


def make(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder that has room for a run; ``exist_ok`` takes one that is there.

    Raises:
        FileExistsError: if it is there already.
        UserError: if it cannot be made or has no room.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_dir():
            raise
        why, remedy = f"{error.strerror}: {error.filename or path}", "choose another folder with output_root=<folder>"
        raise UserError(f"no run can be kept in {path.parent} ({why}); {remedy}") from error
    try:
        check_room(path)
    except UserError:
        with suppress(OSError):  # another process may be using it already
            path.rmdir()
        raise


def check_room(folder: Path) -> None:
    """Raise UserError if the disk of a folder is full, before anything is trained."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(ROOM))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}; {ROOM_REMEDY}") from error


def plain(name: str) -> str:
    """Replace what a file system or TensorBoard does not take in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "_", name)[:LONGEST_NAME].rstrip(".-")


def replace(path: Path, content: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file atomically: a reader finds the old content or the new one; see `writing`."""
    with writing(path, ROOM_REMEDY, sync=sync) as file:
        file.write(content)


@contextmanager
def writing(
    path: Path, remedy: str = "make room, or choose another file with output=<file>", *, sync: bool = True
) -> Iterator[BinaryIO]:
    """Give a new file beside ``path`` to write and read; it replaces ``path`` once the block has succeeded.

    Args:
        path: the file. A symbolic link is replaced, and never followed.
        remedy: what the user can do about a full disk.
        sync: whether the content is on disk before; without, a power cut may lose the file, a kill does not.

    Raises:
        UserError: if the disk is full, or refuses to be written.
    """
    try:
        remove_parts(path.parent)
        part, descriptor = new_part(path.parent)
        try:
            with os.fdopen(descriptor, "w+b") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(descriptor)
                part.replace(path)
        finally:
            with suppress(OSError):  # of a folder that has become read-only
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def new_part(folder: Path) -> tuple[Path, int]:
    """Make a file under a name that nobody can guess, and lock it."""
    while True:
        part = folder / f"{PART}{os.urandom(8).hex()}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with suppress(OSError):  # some network file systems have no locks, and then nothing is removed
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)  # `remove_parts` of another process came before the lock


def remove_parts(folder: Path) -> None:
    """Delete the files that killed processes have left unfinished: the kernel has freed their locks."""
    for part in folder.glob(f"{PART}*.part"):
        with suppress(OSError, UserError), open(part, "r+b", opener=no_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def no_link(path: str | Path, flags: int) -> int:
    """Open a file as the ``opener`` of `open`, but no symbolic link; see `refuse_link`."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # nor wait for a pipe
    except OSError:
        refuse_link(Path(path))
        raise


def refuse_link(path: Path) -> None:
    """Raise UserError for a symbolic link where files are to be written: they would be written elsewhere."""
    if path.is_symlink():
        remedy = "delete it, or copy what it names there"
        raise UserError(f"{path}: a symbolic link, through which nothing is written; {remedy}")


def part_from_locks() -> None:
    """Close the files of `HELD` in a process that was forked, as a DataLoader's worker, which would keep the locks."""
    for file in HELD:
        os.close(file)


HELD: set[int] = set()  # locked files that belong to this process alone
os.register_at_fork(after_in_child=part_from_locks)


def taken(file: int) -> bool:
    """Take the exclusive lock of an open file; False if another process keeps holding it."""
    for _ in range(50):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(PATIENCE / 50)
    return False


def is_locked(path: Path) -> bool:
    """Tell whether a process holds the lock of a file."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # the lock is held, or there is no such file
        return isinstance(error, BlockingIOError)
    return False
