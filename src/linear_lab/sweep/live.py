"""Shows the progress of a sweep on the terminal, in one line, with any launcher."""

import threading
import time
from pathlib import Path
from typing import Any, Self

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from linear_lab.sweep import board
from linear_lab.terminal.layout import NARROW, number

INTERVAL = 0.5  # least seconds between two updates
FAILURES = 20  # most failed jobs that are printed
PIPE_INTERVAL = 30.0  # seconds between two lines if the output is not a terminal
FAILED = pl.col("status") == "failed"


class Watch:
    """Reads the records of a sweep's jobs in a thread, shows its progress, and prints a line when a job fails."""

    def __init__(self, screen: Console, folder: Path) -> None:
        self.screen, self.folder = screen, folder
        self.names = pl.Series(dtype=pl.String)
        self.total: int | None = None
        self.ended_before = 0  # number of jobs that had ended when stacked training began
        self.stack: tuple[int, int, int, int] | None = None  # the last arguments of `stacked`
        self.failures: dict[str, Any] = {}  # by name, the seconds of failed jobs that need no line any more
        self.last = time.monotonic()
        self.progress = Progress(
            *([TextColumn("sweep"), BarColumn(bar_width=30)] if screen.width >= NARROW else []),
            MofNCompleteColumn(),
            TextColumn("{task.fields[counts]}", markup=False),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=screen,
            auto_refresh=False,
        )
        self.task = self.progress.add_task("", total=None, counts="")
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        return self

    def show(self, names: pl.Series) -> None:
        """Add jobs to those that are counted; the first call starts the thread."""
        self.names = pl.concat([self.names, names]).unique(maintain_order=True)
        if not self.thread.is_alive():
            failed = board.read(self.folder).jobs.filter(FAILED)
            self.failures = dict(failed.select("name", "seconds").iter_rows())
            if self.screen.is_terminal:
                self.progress.start()
            self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.ended.set()
        if self.thread.is_alive():
            self.thread.join()
            self._refresh()
            if self.screen.is_terminal:
                self.progress.stop()
            self.screen.print()

    def stacked(self, ended: int, training: int, step: int, steps: int) -> None:
        """Set the progress of stacks: the jobs that have ended, the jobs that train, their step, and its maximum."""
        self.stack = ended, training, step, steps

    def _watch(self) -> None:
        pause = INTERVAL
        while not self.ended.wait(pause):
            started = time.thread_time()
            self._refresh()
            pause = max(INTERVAL, (time.thread_time() - started) / board.SHARE)  # longer for many jobs

    def _refresh(self) -> None:
        total = self.total or len(self.names)
        if self.stack:
            ended, training, step, steps = self.stack
            done = self.ended_before + ended + training * step // steps  # counts steps, to estimate the time left
            texts = [f"step {step}/{steps} of {training:,} jobs at once"]
        else:
            done, texts = self._progress_of_jobs()
        self.progress.update(self.task, completed=done, total=total, counts=", ".join(texts))
        if self.screen.is_terminal:
            self.progress.refresh()
        elif time.monotonic() - self.last > PIPE_INTERVAL:
            self.last = time.monotonic()
            self.screen.print(f"sweep  {done}/{total}  {', '.join(texts)}", soft_wrap=True)

    def _progress_of_jobs(self) -> tuple[int, list[str]]:
        sweep = board.read(self.folder)
        jobs = sweep.jobs.filter(pl.col("name").is_in(self.names.implode()))
        for name, seconds, error in jobs.filter(FAILED).select("name", "seconds", "error").head(FAILURES).iter_rows():
            if self.failures.get(name, -1.0) != seconds:
                self.failures[name] = seconds
                self.screen.print(f"failed  {name}: {error}", soft_wrap=True)
        counts = dict(jobs["status"].value_counts().iter_rows())
        self.ended_before = sum(counts.get(status, 0) for status in ("completed", "diverged", "pruned", "failed"))
        shown = [status for status in ("running", "failed", "diverged", "pruned") if status in counts]
        texts = [f"{status} {counts[status]}" for status in shown]
        if sweep.best:
            texts.append(f"best {number(sweep.best.value)} ({sweep.best.name})")
        return self.ended_before, texts
