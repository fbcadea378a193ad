"""Standard output and error without control characters; a command continues if they fail. Imports no other library."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import IO, Any

from linear_lab.text import printable


class Output:
    """Standard output or error. If writing fails, all later text goes to ``nowhere``."""

    def __init__(self, stream: Any, nowhere: IO[str], *, plain: bool) -> None:
        self.stream, self.nowhere = nowhere if stream is None else stream, nowhere  # None: the shell closed it
        self.plain = plain  # whether control characters are replaced; False where rich writes colours
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
            os.dup2(self.nowhere.fileno(), self.stream.fileno())  # Python flushes it again when it exits

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let a command continue if its output cannot be written, as on a full disk; it then ends with exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.encoding.lower() != "utf-8":  # it may lack a character
            stream.reconfigure(errors="backslashreplace")
    with Path(os.devnull).open("w") as nowhere:
        out, errors = Output(sys.stdout, nowhere, plain=False), Output(sys.stderr, nowhere, plain=True)
        try:
            with redirect_stdout(out), redirect_stderr(errors):
                yield
        finally:
            out.flush()
            if out.error and not isinstance(out.error, BrokenPipeError):
                errors.write(f"error: standard output: {out.error.strerror}; the command continued without it\n")
            errors.flush()
    if out.error or errors.error:
        raise SystemExit(1)
