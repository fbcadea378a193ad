"""The log file of a run or of a sweep's stacks."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)


@contextmanager
def log_to_file(path: Path, *, terminal: bool = False) -> Iterator[None]:
    """Send log messages, and the traceback of what ends the block, to a file too; to Hydra's own if there is one.

    Without ``terminal`` they are kept off the terminal.
    """
    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    handlers = [handler for handler in before if terminal or type(handler) is not logging.StreamHandler]
    nested = any(isinstance(handler, logging.FileHandler) for handler in handlers)
    if not nested:
        handlers.append(logging.FileHandler(path))
        handlers[-1].setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    root.handlers[:] = handlers
    root.setLevel(min(level, logging.INFO))
    try:
        yield
    except Exception:
        if not nested:
            log.info("failed", exc_info=True)
        raise
    finally:
        root.handlers[:] = before
        root.setLevel(level)
        for handler in set(handlers) - set(before):
            handler.close()
