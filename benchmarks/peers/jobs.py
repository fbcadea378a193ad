"""The jobs that linear_lab and its peers train: all pairs of a learning rate, from 0.001 to 0.1, and a seed."""

from typing import Any

import numpy as np

STEPS = 200  # steps of Adam per job, each on all four points of y = 2 x
X = [1.0, 2.0, 3.0, 4.0]


def grid(jobs: int) -> tuple[list[str], int]:
    """Return the learning rates for a number of jobs, as they are typed, and the number of seeds per learning rate."""
    seeds = min(max(jobs // 100, 1), 1000)
    return [f"{rate:.5g}" for rate in np.geomspace(0.001, 0.1, jobs // seeds)], seeds


def numbers(jobs: int) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
    """Return the learning rate of each job, ``(J,)``, and its initial weight and bias, ``(2, J)``; float32."""
    rates, seeds = grid(jobs)
    starts = np.random.default_rng(0).uniform(-1, 1, (2, jobs))  # as nn.Linear(1, 1) draws them
    return np.repeat(np.array(rates, np.float32), seeds), starts.astype(np.float32)
