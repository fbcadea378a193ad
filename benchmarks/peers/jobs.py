"""The jobs that our sweep and its peers train: rates times seeds, from 0.001 to 0.1 in equal ratios."""

from typing import Any

import numpy as np

STEPS = 200  # of Adam, each on all four points of y = 2 x
X = [1.0, 2.0, 3.0, 4.0]


def grid(jobs: int) -> tuple[list[str], int]:
    """Return the rates of so many jobs, as typed, and the number of seeds for each."""
    seeds = min(max(jobs // 100, 1), 1000)
    return [f"{rate:.5g}" for rate in np.geomspace(0.001, 0.1, jobs // seeds)], seeds


def numbers(jobs: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return the rate of each job, ``(J,)``, and where its weight and its bias start, ``(2, J)``; float32."""
    rates, seeds = grid(jobs)
    starts = np.random.default_rng(0).uniform(-1, 1, (2, jobs))  # as nn.Linear(1, 1) starts
    return np.repeat(np.array(rates, np.float32), seeds), starts.astype(np.float32)
