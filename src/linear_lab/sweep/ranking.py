"""How a sweep's jobs compare: ranks, what differs between them, and groups over seeds."""

import functools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from linear_lab.sweep.records import Job

T = TypeVar("T")


@dataclass
class Group:
    """Jobs whose configs differ in the seed alone, one a seed.

    >>> jobs = [Job(Path(), {}, [], "completed", value) for value in (1.0, 2.0, 4.0, 5.0)]
    >>> Group(jobs).summary("min")
    [3.0, 1.8257418583505538, 1.0, 5.0]
    """

    jobs: list[Job]

    @property
    def values(self) -> list[float]:
        """What the completed jobs found."""
        return [job.value for job in self.jobs if job.value is not None]

    @property
    def lost(self) -> int:
        """How many diverged or failed."""
        return sum(job.status in ("diverged", "failed") for job in self.jobs)

    def summary(self, mode: str) -> list[float | None]:
        """Mean, sample standard deviation ``sqrt(sum((v - mean)^2) / (n - 1))`` (None if n is 1), best, worst."""
        values = sorted(self.values, reverse=mode == "max")
        if not values:
            return [None] * 4
        return [statistics.mean(values), statistics.stdev(values) if len(values) > 1 else None, values[0], values[-1]]


@dataclass
class Board:
    """What a sweep has found so far.

    Attributes:
        folder: the sweep's.
        metric: by which jobs are ranked.
        mode: min | max, whether a lower or a higher metric is better.
        jobs: in the order planned, then those that no plan tells.
        notes: what a reader has to know.
    """

    folder: Path
    metric: str
    mode: str
    jobs: list[Job]
    notes: list[str]

    @functools.cached_property
    def ranked(self) -> list[tuple[int | None, Job]]:
        """Jobs with their ranks, best first; equal values share one, ``1, 1, 3``; those without follow as planned."""
        return rank(self.jobs, lambda job: None if job.value is None else self.sign * job.value)

    @property
    def best(self) -> Job | None:
        """The winner: of equal ones the first planned. None before a job is completed."""
        return next((job for place, job in self.ranked if place), None)

    @property
    def counts(self) -> dict[str, int]:
        """How many jobs have which status."""
        return dict(Counter(job.status for job in self.jobs))

    @property
    def sign(self) -> int:
        """What a metric is multiplied with to have the least first."""
        return -1 if self.mode == "max" else 1

    @functools.cached_property
    def differing(self) -> list[str]:
        """Keys of overrides whose values differ between jobs, in the order typed."""
        known = [job.overrides for job in self.jobs if job.typed is not None]
        keys = dict.fromkeys(key for overrides in known for key in overrides)
        return [key for key in keys if len({overrides.get(key) for overrides in known}) > 1]

    @functools.cached_property
    def groups(self) -> list[tuple[int | None, Group]]:
        """Groups over seeds with their ranks by the mean, those that lost none first; none unless one has two seeds."""
        found: dict[str, dict[str, Job]] = {}
        for job in self.jobs:
            if group := job.record.get("job", {}).get("group"):
                seed = job.record.get("seed", job.overrides.get("seed"))
                of_one = found.setdefault(str(group), {})
                if (
                    str(seed) not in of_one or of_one[str(seed)].value is None
                ):  # one config typed in two ways counts once
                    of_one[str(seed)] = job
        groups = [Group(list(jobs.values())) for jobs in found.values()]
        if all(len(group.jobs) == 1 for group in groups) or not any(group.values for group in groups):
            return []
        return rank(groups, lambda g: (g.lost > 0, self.sign * statistics.mean(g.values)) if g.values else None)


def rank(items: Iterable[T], key: Callable[[T], Any]) -> list[tuple[int | None, T]]:
    """Sort by a key, least first, and number: equal keys share a number; those without a key follow as they were.

    >>> rank("bcab?", lambda letter: None if letter == "?" else letter)
    [(1, 'a'), (2, 'b'), (2, 'b'), (4, 'c'), (None, '?')]
    """
    keyed = [(key(item), item) for item in items]
    ordered = sorted((pair for pair in keyed if pair[0] is not None), key=lambda pair: pair[0])
    ranked: list[tuple[int | None, T]] = []
    for place, (found, item) in enumerate(ordered, start=1):
        tie = place > 1 and found == ordered[place - 2][0]
        ranked.append((ranked[-1][0] if tie else place, item))
    return ranked + [(None, item) for found, item in keyed if found is None]
