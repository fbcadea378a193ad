"""What the terminal shows while a sweep runs: one line, whatever launcher its jobs have."""

import threading
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from linear_lab.sweep import board
from linear_lab.terminal import NARROW, number

INTERVAL = 0.5  # seconds between two looks at the jobs' records
SHARE = 0.05  # of a core's time that these may take: of many jobs they are rarer
PIPE_INTERVAL = 30.0  # seconds between two lines where nothing can move


class Watch:
    """Shows how far a sweep is, from what its jobs leave; a job that fails gets a line at once.

    Args:
        screen: where.
        folder: the sweep's.
    """

    def __init__(self, screen: Console, folder: Path) -> None:
        self.screen, self.folder = screen, folder
        self.names: list[str] = []
        self.total: int | None = None
        self.told: dict[str, Any] = {}  # failures that stand on the terminal, or are of an earlier command
        self.last = time.monotonic()
        self.progress = Progress(
            *([TextColumn("sweep"), BarColumn(bar_width=30)] if screen.width >= NARROW else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=screen,
            auto_refresh=False,
        )
        self.task = self.progress.add_task("", total=None, counts="")
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        return self

    def show(self, names: Iterable[str]) -> None:
        """Add jobs to those that are shown; the first ones put the line up."""
        self.names = list(dict.fromkeys([*self.names, *names]))
        if not self.thread.is_alive():
            found = board.read(self.folder).jobs
            self.told = {job.name: job.record.get("seconds") for job in found if job.status == "failed"}
            if self.screen.is_terminal:
                self.progress.start()
            self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        if self.thread.is_alive():
            self.thread.join()
            self._look()
            if self.screen.is_terminal:
                self.progress.stop()
            self.screen.print()

    def _watch(self) -> None:
        pause = INTERVAL
        while not self.over.wait(pause):
            started = time.thread_time()
            self._look()
            pause = max(INTERVAL, (time.thread_time() - started) / SHARE)

    def _look(self) -> None:
        found = board.read(self.folder)
        wanted = set(self.names)
        mine = [job for job in found.jobs if job.name in wanted]
        for job in mine:
            seconds = job.record.get("seconds")
            if job.status == "failed" and self.told.get(job.name, -1.0) != seconds:
                self.told[job.name] = seconds
                self.screen.print(f"failed  {job.name}: {job.record.get('error')}", soft_wrap=True)
        counts = Counter(job.status for job in mine)
        done = sum(counts[kind] for kind in ("completed", "diverged", "pruned", "failed"))
        texts = [f"{kind} {counts[kind]}" for kind in ("running", "failed", "diverged", "pruned") if counts[kind]]
        if found.best:
            texts.append(f"best {number(found.best.value)} ({found.best.name})")
        total = self.total or len(self.names)
        self.progress.update(self.task, completed=done, total=total, counts=", ".join(texts))
        if self.screen.is_terminal:
            self.progress.refresh()
        elif time.monotonic() - self.last > PIPE_INTERVAL:
            self.last = time.monotonic()
            self.screen.print(f"sweep  {done}/{total}  {', '.join(texts)}", soft_wrap=True)
