"""Importing torch and Lightning, which takes most of a short command's time."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

from linear_lab.terminal.layout import heed


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and Lightning without a search for garbage among half a million new objects, all in use.

    They are not searched later either, nor when the process ends: each time took a second. What comes after is searched
    less often than Python does: a sweep of a thousand jobs would look through its plan and records all the time.
    """
    gc.disable()
    try:
        yield
    finally:
        if not gc.get_freeze_count():  # once: again, it would keep the config of each job of a sweep
            gc.freeze()
        # new objects, and searches of these, before those that have stayed are searched
        gc.set_threshold(10_000, 20, 50)
        gc.enable()
    heed()
