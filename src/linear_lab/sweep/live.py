"""What the terminal shows while a sweep runs: one line, whatever launcher its jobs have."""

import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from linear_lab.sweep import board
from linear_lab.terminal.layout import NARROW, number

if TYPE_CHECKING:
    import polars as pl

INTERVAL = 0.5  # seconds between two looks at the jobs' records
SHARE = 0.05  # of a core's time that these may take: of many jobs they are rarer
FAILURES = 20  # lines of jobs that failed
PIPE_INTERVAL = 30.0  # seconds between two lines where nothing can move


class Watch:
    """Shows how far a sweep is, from what its jobs leave; a job that fails gets a line at once.

    Args:
        screen: where.
        folder: the sweep's.
    """

    def __init__(self, screen: Console, folder: Path) -> None:
        self.screen, self.folder = screen, folder
        self.names: pl.Series | None = None
        self.total: int | None = None
        self.before = 0  # jobs that had ended when a stack began
        self.stack: tuple[int, int, int, int] | None = None  # as `stacked` was told last
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

    def show(self, names: "pl.Series") -> None:
        """Add jobs to those that are shown; the first ones put the line up."""
        import polars as pl

        self.names = names if self.names is None else pl.concat([self.names, names]).unique(maintain_order=True)
        if not self.thread.is_alive():
            self.told = dict(self.failed(board.read(self.folder).jobs).select("name", "seconds").iter_rows())
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
        """Show how far stacks are.

        Args:
            ended: jobs that have ended.
            training: jobs that train.
            step: how many steps these have taken.
            steps: of how many.
        """
        self.stack = ended, training, step, steps

    @staticmethod
    def failed(jobs: "pl.DataFrame") -> "pl.DataFrame":
        """Return the jobs that have failed."""
        return jobs.filter(jobs["status"] == "failed")

    def _watch(self) -> None:
        pause = INTERVAL
        while not self.over.wait(pause):
            started = time.thread_time()
            self._look()
            pause = max(INTERVAL, (time.thread_time() - started) / SHARE)

    def _look(self) -> None:
        assert self.names is not None
        total = self.total or len(self.names)
        if self.stack:
            ended, training, step, steps = self.stack
            done = self.before + ended + training * step // steps  # the time left is told from the first step on
            texts = [f"step {step}/{steps} of {training:,} jobs at once"]
        else:
            found = board.read(self.folder)
            mine = found.jobs.filter(found.jobs["name"].is_in(self.names.implode()))
            for name, seconds, error in self.failed(mine).select("name", "seconds", "error").head(FAILURES).iter_rows():
                if self.told.get(name, -1.0) != seconds:
                    self.told[name] = seconds
                    self.screen.print(f"failed  {name}: {error}", soft_wrap=True)
            counts: Counter[str] = Counter(dict(mine["status"].value_counts().iter_rows()))
            done = self.before = sum(counts[kind] for kind in ("completed", "diverged", "pruned", "failed"))
            texts = [f"{kind} {counts[kind]}" for kind in ("running", "failed", "diverged", "pruned") if counts[kind]]
            if found.best:
                texts.append(f"best {number(found.best.value)} ({found.best.name})")
        self.progress.update(self.task, completed=done, total=total, counts=", ".join(texts))
        if self.screen.is_terminal:
            self.progress.refresh()
        elif time.monotonic() - self.last > PIPE_INTERVAL:
            self.last = time.monotonic()
            self.screen.print(f"sweep  {done}/{total}  {', '.join(texts)}", soft_wrap=True)
