"""What a command prints and logs: nothing in it controls the terminal, and the command outlives a reader that has gone.

Imports the standard library alone.
"""

import logging
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import IO, Any

from linear_lab import UserError
from linear_lab.runs.atomic import no_link

# C0 but tab and line feed, DEL, C1, marks and overrides of the direction of writing, separators, and halves of pairs
CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Replace the characters that control a terminal, or that UTF-8 cannot write: a text may come from a stranger.

    >>> printable("a\x1b[2Jb, größe\n")
    'a?[2Jb, größe\n'
    """
    return CONTROLS.sub("?", text)


class Output:
    """Standard output or error; once nothing more can be written there, the rest goes to ``nowhere``."""

    def __init__(self, stream: Any, nowhere: IO[str], *, plain: bool) -> None:
        self.stream, self.nowhere = nowhere if stream is None else stream, nowhere  # None: the shell has closed it
        self.plain = plain  # whether no library colours it
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        self._try(self.stream.write, printable(text) if self.plain else text)
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, function: Any, *arguments: Any) -> None:
        try:
            function(*arguments)
        except OSError as error:
            self.error = self.error or error
            os.dup2(self.nowhere.fileno(), self.stream.fileno())  # Python flushes it again at its end

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let a command go on where its output cannot be written, as on a full disk; it then ends with exit code 1."""
    with Path(os.devnull).open("w") as nowhere:
        out, errors = Output(sys.stdout, nowhere, plain=False), Output(sys.stderr, nowhere, plain=True)
        try:
            with redirect_stdout(out), redirect_stderr(errors):
                yield
        finally:
            out.flush()
            if out.error and not isinstance(out.error, BrokenPipeError):
                errors.write(f"error: standard output: {out.error.strerror}; the command went on without it\n")
            errors.flush()
    if out.error or errors.error:
        raise SystemExit(1)


class LogFile(logging.FileHandler):
    """A log file. What cannot be written is dropped, and no link followed: the run's own error says why."""

    def __init__(self, filename: str | Path, delay: bool = False) -> None:
        super().__init__(filename, encoding="utf-8", delay=True)
        if not delay:
            self.open()

    def open(self) -> None:
        with suppress(OSError, UserError):
            self.setStream(open(self.baseFilename, "a", encoding="utf-8", opener=no_link))  # noqa: SIM115

    def emit(self, record: logging.LogRecord) -> None:
        if self.stream is None:
            self.open()
        if self.stream:
            super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def close(self) -> None:
        with suppress(OSError):
            super().close()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """No-op: logging would print a traceback."""
