"""``launch=stacked``: jobs that differ in numbers are trained together, the others one after the other."""

import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from linear_lab import UserError
from linear_lab.compat import without_collection
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.launchers import LocalLauncher

if TYPE_CHECKING:
    import polars as pl

LOG = "stacks.log"  # in the sweep's folder: what the libraries say while stacks are trained
SHOWN = 5  # reasons


class StackedLauncher(LocalLauncher):
    """Trains jobs in stacks, if the sweeper asks for that; what it launches otherwise runs as under ``launch=local``.

    Args:
        keep: how many of the best jobs are trained alone afterwards; at least 0.
        rows: how many of the best jobs have a row on TensorBoard's HPARAMS page; at least 0.
        memory: that a stack may take, in MB; at least 1.
        compile: true, false, or auto: where it pays.
        history: at how many steps losses and parameters of each job are kept; at least 0.
        limit: how many jobs a grid may have; at least 1.
    """

    def __init__(self, keep: int, rows: int, memory: int, compile: bool | str, history: int, limit: int) -> None:
        super().__init__()
        self.keep, self.rows, self.memory, self.limit = keep, rows, memory, limit
        self.compile, self.history = compile, history
        self.notes: list[str] = []

    def check(self) -> None:
        """Refuse what the arguments cannot be.

        Raises:
            UserError: naming the argument and its value.
        """
        for name, low in (("keep", 0), ("rows", 0), ("memory", 1), ("history", 0), ("limit", 1)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"hydra.launcher.{name}={value}: must be a whole number of at least {low}")
        if self.compile not in (True, False, "auto"):
            raise UserError(f"hydra.launcher.compile={self.compile}: choose auto, true or false")

    def train_stacks(
        self, folder: Path, jobs: "pl.DataFrame", composer: Composer, progress: Callable[[int, int, int, int], None]
    ) -> None:
        """Train what fits together; `notes` say why other jobs are left.

        Args:
            folder: the sweep's.
            jobs: rows of its plan.
            composer: of their configs.
            progress: is told how many jobs have ended, how many train, how many steps these have taken of how many.
        """
        assert self.config is not None
        if self.config.hydra.sweeper.get("prune"):
            self.notes = [f"one by one  {len(jobs)} jobs: hydra.sweeper.prune=true"]
            return
        with without_collection():
            from linear_lab.sweep.stackable import groups
            from linear_lab.sweep.stacks import Options, Stacks

        with in_log_alone(folder):
            found, alone = groups(jobs, composer)
            stacks = Stacks(folder, Options(self.memory << 20, self.compile, self.history), progress)
            try:
                stacks.train(found)
            finally:
                reasons = Counter((alone | stacks.alone).values()).most_common(SHOWN)
                left = [f"one by one  {count} {'job' if count == 1 else 'jobs'}: {why}" for why, count in reasons]
                self.notes = [*left, *stacks.notes]


@contextmanager
def in_log_alone(folder: Path) -> Iterator[None]:
    """Have messages and warnings of the libraries go to a file in the sweep's folder, and nowhere else."""
    root, handler = logging.getLogger(), logging.FileHandler(folder / LOG, delay=True)
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(name)s][%(levelname)s] %(message)s"))
    others, level = root.handlers[:], root.level
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        root.handlers[:] = others
        root.setLevel(level)
        handler.close()
