"""Atomic writes, new folders, and file locks, all of which survive a kill at any moment."""

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

LONGEST_NAME = 120  # characters in the name of a folder
MIN_FREE_BYTES = 1 << 20  # required before training starts: a run of a small model needs less
ROOM_REMEDY = "make room, or choose another folder with output_root=<folder>"
PART_PREFIX = ".linear_lab-"  # the names of files that are being written begin with this
LOCK_TIMEOUT = 0.5  # seconds to retry a lock: `is_locked`, called in another process, takes the lock briefly


def new(parent: str | Path, optimizer: str = "", *, hidden: bool = False) -> Path:
    """Make the folder ``<parent>/<UTC time>-<4 random characters>-<optimizer>``, which no other process uses.

    The name of a ``hidden`` folder begins with a dot; `Run.new` renames the folder once its files are written.

    Raises:
        UserError: if the folder cannot be made, or its disk is full.
    """
    random_characters = random.SystemRandom()
    while True:
        name = "".join(random_characters.choices(string.ascii_lowercase + string.digits, k=4))
        suffix = f"-{sanitized(optimizer)}" if optimizer else ""
        path = Path(parent).expanduser() / f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{name}{suffix}"
        place = path.with_name(f".{path.name}") if hidden else path
        with suppress(FileExistsError):
            make(place)
            if place == path or not path.exists():
                return place


def make(path: Path, *, exist_ok: bool = False) -> None:
    """Make a folder and check that its disk has room for a run; ``exist_ok`` accepts an existing folder.

    Raises:
        FileExistsError: if the folder exists and ``exist_ok`` is False.
        UserError: if the folder cannot be made, or its disk is full.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(exist_ok=exist_ok)
    except OSError as error:
        if isinstance(error, FileExistsError) and path.is_dir():
            raise
        why, remedy = f"{error.strerror}: {error.filename or path}", "choose another folder with output_root=<folder>"
        raise UserError(f"cannot make a run folder in {path.parent} ({why}); {remedy}") from error
    try:
        check_room(path)
    except UserError:
        with suppress(OSError):  # another process may be using it already
            path.rmdir()
        raise


def check_room(folder: Path) -> None:
    """Raise UserError if files cannot be written in a folder, or fewer than `MIN_FREE_BYTES` are free on its disk."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(MIN_FREE_BYTES))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"cannot write in {folder}: {error.strerror or error}; {ROOM_REMEDY}") from error


def sanitized(name: str) -> str:
    """Replace the characters that a file system or TensorBoard does not accept in the name of a folder."""
    return re.sub(r"[^A-Za-z0-9._=+-]", "_", name)[:LONGEST_NAME].rstrip(".-")


def replace(path: Path, content: bytes | memoryview, *, sync: bool = True) -> None:
    """Write a file atomically: a reader sees either the old content or the new content; see `writing`."""
    with writing(path, ROOM_REMEDY, sync=sync) as file:
        file.write(content)


@contextmanager
def writing(
    path: Path, remedy: str = "make room, or choose another file with output=<file>", *, sync: bool = True
) -> Iterator[BinaryIO]:
    """Yield a new file in the folder of ``path``, open for reading and writing; it replaces ``path`` after the block.

    Args:
        path: the file to replace. A symbolic link is itself replaced, and never followed.
        remedy: what the user can do about a full disk; part of the error message.
        sync: whether to call fsync first. Without it, the file survives a kill, but may be lost in a power failure.

    Raises:
        UserError: if the disk is full or not writable.
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
            with suppress(OSError):  # the folder may have become read-only
                part.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}; {remedy}") from error


def new_part(folder: Path) -> tuple[Path, int]:
    """Make a file with a random name, which nobody can predict, and lock it; returns its path and descriptor."""
    while True:
        part = folder / f"{PART_PREFIX}{os.urandom(8).hex()}.part"
        descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        with suppress(OSError):  # some network file systems have no locks; there `remove_parts` removes nothing
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        if os.fstat(descriptor).st_nlink:
            return part, descriptor
        os.close(descriptor)  # another process has deleted the file, by `remove_parts`, before it was locked


def remove_parts(folder: Path) -> None:
    """Delete the unfinished files of killed processes, which are the ones whose locks are free."""
    for part in folder.glob(f"{PART_PREFIX}*.part"):
        with suppress(OSError, UserError), open(part, "r+b", opener=no_link) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            part.unlink()


def no_link(path: str | Path, flags: int) -> int:
    """Open a file as the ``opener`` of `open`; raise UserError if it is a symbolic link."""
    try:
        return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666)  # O_NONBLOCK: do not wait for a pipe
    except OSError:
        refuse_link(Path(path))
        raise


def refuse_link(path: Path) -> None:
    """Raise UserError if the path is a symbolic link, since writing through it would change files elsewhere."""
    if path.is_symlink():
        remedy = "delete the link, or replace it by a copy of its target"
        raise UserError(f"{path}: it is a symbolic link, and linear_lab never writes through one; {remedy}")


def close_held_locks() -> None:
    """Close `HELD_LOCKS` in a forked process, such as a DataLoader's worker, which would otherwise keep the locks."""
    for file in HELD_LOCKS:
        os.close(file)


HELD_LOCKS: set[int] = set()  # descriptors of locked files, which forked processes must not inherit
os.register_at_fork(after_in_child=close_held_locks)


def try_lock(file: int) -> bool:
    """Take the exclusive lock of an open file; False if another process still holds it after `LOCK_TIMEOUT`."""
    for _ in range(50):
        with suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(LOCK_TIMEOUT / 50)
    return False


def is_locked(path: Path) -> bool:
    """Return whether a process holds the lock of a file; False for a file that does not exist."""
    try:
        with path.open("r+b") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    return False
