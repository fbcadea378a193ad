"""The log file of a run or of a sweep's stacks."""

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from linear_lab import UserError
from linear_lab.runs.atomic import no_link
from linear_lab.text import printable

log = logging.getLogger(__name__)


class LogFile(logging.FileHandler):
    """A log file without control characters, which is never opened through a symbolic link.

    It drops messages that cannot be written, as on a full disk; `FileHandler` would print a traceback for each of them.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8", delay=True)
        self.setStream(open(path, "a", encoding="utf-8", opener=no_link))  # noqa: SIM115

    def format(self, record: logging.LogRecord) -> str:
        return printable(super().format(record))

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        """No-op."""

    def close(self) -> None:
        with suppress(OSError):
            super().close()


@contextmanager
def log_to_file(path: Path, *, terminal: bool = False) -> Iterator[None]:
    """Log messages, and the traceback of an error that ends the block, to a file; to Hydra's own log if it has one.

    Without ``terminal``, the terminal gets no messages. An error that ends a thread goes to the file alone: when
    TensorBoard's thread cannot write, the block gets the error too.
    """
    root = logging.getLogger()
    before, level, thread_hook = root.handlers[:], root.level, threading.excepthook
    handlers = [handler for handler in before if terminal or type(handler) is not logging.StreamHandler]
    nested = any(isinstance(handler, logging.FileHandler) for handler in handlers)
    if not nested:
        try:
            handlers.append(LogFile(path))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}; choose another folder") from error
        handlers[-1].setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    root.handlers[:] = handlers
    root.setLevel(min(level, logging.INFO))
    threading.excepthook = lambda end: log.info("a thread failed", exc_info=end.exc_value)
    try:
        yield
    except Exception:
        if not nested:
            log.info("failed", exc_info=True)
        raise
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        threading.excepthook = thread_hook
        for handler in set(handlers) - set(before):
            handler.close()
