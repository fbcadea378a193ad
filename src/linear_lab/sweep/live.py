"""What the terminal shows while a sweep runs: one line, whatever launches its jobs."""

import threading
import time
from pathlib import Path
from typing import Any, Self

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from linear_lab.sweep import board
from linear_lab.terminal.layout import NARROW, number

INTERVAL = 0.5  # seconds between two looks at the jobs' records
FAILURES = 20  # lines of jobs that failed
PIPE_INTERVAL = 30.0  # seconds between two lines where no bar can move
FAILED = pl.col("status") == "failed"


class Watch:
    """Shows how far a sweep is, from what its jobs leave; a job that fails gets a line at once."""

    def __init__(self, screen: Console, folder: Path) -> None:
        self.screen, self.folder = screen, folder
        self.names = pl.Series(dtype=pl.String)
        self.total: int | None = None
        self.before = 0  # jobs that had ended when a stack began
        self.stack: tuple[int, int, int, int] | None = None  # the last arguments of `stacked`
        self.failures: dict[str, Any] = {}  # that were shown, or are of an earlier command: seconds by name
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
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        return self

    def show(self, names: pl.Series) -> None:
        """Add jobs to those that are shown; the first ones start the line."""
        self.names = pl.concat([self.names, names]).unique(maintain_order=True)
        if not self.thread.is_alive():
            failed = board.read(self.folder).jobs.filter(FAILED)
            self.failures = dict(failed.select("name", "seconds").iter_rows())
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

    def stacked(self, ended: int, training: int, step: int, steps: int) -> None:
        """Show how far stacks are: jobs that have ended, jobs that train, and how many of their steps are done."""
        self.stack = ended, training, step, steps

    def _watch(self) -> None:
        pause = INTERVAL
        while not self.over.wait(pause):
            started = time.thread_time()
            self._look()
            pause = max(INTERVAL, (time.thread_time() - started) / board.SHARE)  # less often where there are many jobs

    def _look(self) -> None:
        total = self.total or len(self.names)
        if self.stack:
            ended, training, step, steps = self.stack
            done = self.before + ended + training * step // steps  # steps count, for the time that is left
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
        self.before = sum(counts.get(status, 0) for status in ("completed", "diverged", "pruned", "failed"))
        shown = [status for status in ("running", "failed", "diverged", "pruned") if status in counts]
        texts = [f"{status} {counts[status]}" for status in shown]
        if sweep.best:
            texts.append(f"best {number(sweep.best.value)} ({sweep.best.name})")
        return self.before, texts
