"""A sweep's own page in TensorBoard, the run ``_sweep``: when it is written anew."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from linear_lab import UserError
from linear_lab.runs.folder import Trust
from linear_lab.sweep import PLAN

PAGE = "_sweep"  # a folder beside the jobs; no job's name begins so
SHOWN = "shown"  # in it, the fingerprint of what the page shows
LOCK = ".page.lock"

log = logging.getLogger(__name__)
_written: dict[Path, tuple[float, float]] = {}  # when the page was looked at last, and how long that took


@contextmanager
def refresh(folder: str | Path, trust: Trust = None) -> Iterator[None]:
    """Update leaderboard and page after the block, if the run that it trains is a job of a sweep."""
    try:
        yield
    finally:
        sweep = Path(folder).parent
        if (sweep / PLAN).exists() or (sweep / PAGE).is_dir():
            from linear_lab.sweep import board  # only now: another run needs no polars

            board.write(sweep)
            write_page(sweep, trust=trust)


def write_page(folder: str | Path, *, sparingly: bool = False, trust: Trust = None) -> None:
    """Write the page of a sweep's folder anew, if what it shows has changed and jobs have event files.

    Pictures: the learning rate against the final metric, and the optimizers' paths on one loss surface. Text: the
    leaderboard. Beside it the least-squares solution as a run of its own, for a line in each chart. A page that cannot
    be written costs a warning. Between the jobs it is written ``sparingly``: not more often than `board.SHARE` of the
    time allows, and not while another process writes it. ``trust`` are classes that the jobs' configs may name.
    """
    from linear_lab.sweep import board, results

    folder, started = Path(folder), time.monotonic()
    if sparingly and not board.is_due(*_written.get(folder, (0.0, 0.0))):
        return
    shown = folder / PAGE / SHOWN
    try:
        if not any(folder.glob("*/events.out.tfevents.*")) and not (folder / results.RESULTS).exists():
            return
        with results.locked(folder / LOCK, wait=not sparingly):
            sweep = board.write(folder) if sparingly else board.read(folder)
            fingerprint = hashlib.sha256(board.table(sweep).encode()).hexdigest()
            if shown.exists() and shown.read_text() == fingerprint:
                return
            from linear_lab.sweep.page_content import log_page  # only now: it imports torch

            log_page(sweep, folder / PAGE, trust)
            shown.write_text(fingerprint)
    except BlockingIOError:
        pass
    except UserError as error:
        log.warning("the page of %s is not written: %s", folder, error)
    except Exception:
        log.warning("the page of %s could not be written", folder, exc_info=True)
    finally:
        _written[folder] = time.monotonic(), time.monotonic() - started
