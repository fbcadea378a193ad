"""Runs a sweep as ``python -m linear_lab.train -m <overrides>`` does; its last line has the seconds of each part.

"plan" makes the table of jobs; "train" trains them, in stacks or one by one; "write" writes results.parquet, the
leaderboard and the page; "best" trains the best jobs of stacks again, alone, and writes HPARAMS rows. The rest of the
time is Hydra's start, and imports.
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import lightning.pytorch  # noqa: F401  at the top, so that no part includes the time of the import
import polars  # noqa: F401
import torch  # noqa: F401

from linear_lab import train
from linear_lab.sweep import results, sweeper
from linear_lab.sweep.dispatch import Launches
from linear_lab.sweep.launchers import StackedLauncher
from linear_lab.sweep.sweeper import GridSweeper

seconds: dict[str, float] = {}  # by part


def clock(name: str, owner: Any, function: str) -> None:
    """Replace a function by one that adds its time to ``seconds[name]``."""
    original: Callable[..., Any] = getattr(owner, function)

    def run(*arguments: Any, **options: Any) -> Any:
        started = time.perf_counter()
        try:
            return original(*arguments, **options)
        finally:
            seconds[name] = seconds.get(name, 0.0) + time.perf_counter() - started

    setattr(owner, function, run)


def main() -> None:
    """Run the sweep."""
    clock("plan", sweeper, "grid")
    clock("plan", GridSweeper, "plan")
    clock("train", StackedLauncher, "train_stacks")
    clock("train", Launches, "run")
    clock("results", results, "add")
    clock("write", GridSweeper, "conclude")
    clock("best", GridSweeper, "keep_best")
    sys.argv = ["train", "-m", *sys.argv[1:]]
    train.main()
    writing = seconds.pop("results", 0.0)  # results.parquet is written while stacks train
    print(json.dumps(seconds | {"train": seconds["train"] - writing, "write": seconds["write"] + writing}))


if __name__ == "__main__":
    main()
