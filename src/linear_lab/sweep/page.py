"""Decides when to write the page of a sweep, which is the run ``_sweep`` in TensorBoard."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.folder import Trust
from linear_lab.sweep import PLAN

PAGE = "_sweep"  # a folder beside those of the jobs, whose names cannot begin with _
SHOWN = "shown"  # a file in it, with the fingerprint of the leaderboard that the page shows
LOCK = ".page.lock"

log = logging.getLogger(__name__)
_written: dict[Path, tuple[float, float]] = {}  # by folder: the time of the last write or check, and its seconds


@contextmanager
def refresh(folder: str | Path, trust: Trust = None) -> Iterator[None]:
    """Update the leaderboard and the page of a sweep after the block, if the run folder is that of one of its jobs."""
    try:
        yield
    finally:
        sweep = Path(folder).parent
        if (sweep / PLAN).exists() or (sweep / PAGE).is_dir():
            from linear_lab.sweep import board  # not at the top, since other runs do not need polars

            board.write(sweep)
            write_page(sweep, trust=trust)


def write_page(folder: str | Path, *, if_due: bool = False, trust: Trust = None) -> None:
    """Write the page of a sweep, if its leaderboard has changed, and jobs have event files or were trained in stacks.

    The page shows the final metric over the learning rate, the paths of the optimizers on one loss surface, and the
    leaderboard. The least-squares solution is another run, which gives a line in each chart. A failure is a warning.
    With ``if_due``, for calls between jobs, the page is written only if this takes no more than `board.SHARE` of the
    time, and no other process is writing it. ``trust`` are classes that the jobs' configs may name.
    """
    from linear_lab.sweep import board, results

    folder, started = Path(folder), time.monotonic()
    if if_due and not board.is_due(*_written.get(folder, (0.0, 0.0))):
        return
    shown = folder / PAGE / SHOWN
    try:
        if not any(folder.glob("*/events.out.tfevents.*")) and not (folder / results.RESULTS).exists():
            return
        with results.locked(folder / LOCK, wait=not if_due):
            sweep = board.write(folder) if if_due else board.read(folder)
            fingerprint = hashlib.sha256(board.table(sweep).encode()).hexdigest()
            if shown.exists() and shown.read_text() == fingerprint:
                return
            from linear_lab.sweep.page_content import log_page  # not at the top, since it imports torch

            log_page(sweep, folder / PAGE, trust)
            atomic.replace(shown, fingerprint.encode())
    except BlockingIOError:
        pass
    except (OSError, UserError) as error:
        log.warning("the page of %s could not be written: %s", folder, error)
    except Exception:
        log.warning("the page of %s could not be written", folder, exc_info=True)
    finally:
        _written[folder] = time.monotonic(), time.monotonic() - started
