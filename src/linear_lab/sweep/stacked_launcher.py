"""``launch=stacked``: jobs that differ in numbers are trained together, the others one after the other."""

import functools
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from linear_lab import UserError
from linear_lab.run import LOG, config_hash, is_held
from linear_lab.startup import importing
from linear_lab.sweep.composer import Composer, composer_of
from linear_lab.sweep.launcher import LocalLauncher
from linear_lab.sweep.records import is_steering

SUBFOLDER = "hydra.sweep.subdir="
QUOTED = re.compile(r"'([\w.=+-]+)'", re.ASCII)  # what stands for itself between quotes
SHOWN = 5  # reasons


@dataclass
class Job:
    """A job that is to be launched.

    Attributes:
        typed: its overrides, but for those that steer the sweep.
        folder: its run folder.
        config: what it composes to, resolved.
    """

    typed: list[str]
    folder: Path
    config: dict[str, Any]

    @functools.cached_property
    def hash(self) -> str:
        """Fingerprint of what in the config decides the numbers."""
        return config_hash(self.config)


class StackedLauncher(LocalLauncher):
    """Trains stacks of jobs first, then one after the other those that fit into none.

    Args:
        jobs: at most so many in a stack; at least 1.
        memory: that a stack may take, in MB; at least 1.
        pictures: how many of the best jobs get the pictures of a run; at least 0.
    """

    leaves_rest = False  # to the sweeper, which launches again what has not ended

    def __init__(self, jobs: int, memory: int, pictures: int) -> None:
        super().__init__()
        self.jobs, self.memory, self.pictures = jobs, memory, pictures

    def check(self) -> None:
        """Refuse what the arguments cannot be.

        Raises:
            UserError: naming the argument and its value.
        """
        for name, low in (("jobs", 1), ("memory", 1), ("pictures", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < low:
                raise UserError(f"hydra.launcher.{name}={value}: must be a whole number of at least {low}")

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        self.composer: Composer = composer_of(hydra_context, config)  # a sweeper that has one may put it here
        self.parser = OverridesParser.create()
        self.notes: list[str] = []
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Train all jobs; what each returns, in their order.

        One job is trained as it would be under ``launch=local``.
        """
        self.check()
        lines = [list(line) for line in job_overrides]
        if len(lines) == 1:
            return super().launch(lines, initial_job_idx)
        done, alone = self.train_stacks(lines)
        left = [position for position in range(len(lines)) if position not in done]
        self.notes = [
            f"one by one  {count} {'job' if count == 1 else 'jobs'}: {reason}"
            for reason, count in Counter(alone.get(position, "") for position in left).most_common(SHOWN)
        ]
        if left and not self.leaves_rest:
            rest = super().launch([lines[position] for position in left], initial_job_idx)
            done |= dict(zip(left, rest, strict=True))
        return [done.get(position, JobReturn()) for position in range(len(lines))]

    def train_stacks(self, lines: list[list[str]]) -> tuple[dict[int, JobReturn], dict[int, str]]:
        """Train what fits together; what it returned, and why other jobs are left, by position."""
        assert self.config is not None
        if self.config.hydra.sweeper.get("prune"):
            return {}, dict.fromkeys(range(len(lines)), "hydra.sweeper.prune=true")
        if not all(any(item.startswith(SUBFOLDER) for item in line) for line in lines):
            return {}, dict.fromkeys(range(len(lines)), "the sweeper does not name the jobs' folders")
        with importing():
            from linear_lab.sweep.stacks import train_stacks

        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        self.composer.steering = [item for item in lines[0] if is_steering(item) and not item.startswith("hydra")]
        jobs = [self.job(folder, line) for line in lines]
        done, alone = train_stacks(jobs, self.composer, self.jobs, self.memory << 20, self.pictures)
        for position, reason in alone.items():
            if not is_held(jobs[position].folder):
                tell(jobs[position].folder, f"not stacked: {reason}")
        return done, alone

    def job(self, folder: Path, line: list[str]) -> Job:
        """Take a job from the overrides that the sweeper gives."""
        named = next(item for item in line if item.startswith(SUBFOLDER))
        typed = [item for item in line if not is_steering(item)]
        plain = QUOTED.fullmatch(named.removeprefix(SUBFOLDER))  # Hydra's grammar takes a millisecond
        name = plain[1] if plain else str(self.parser.parse_override(named).value())
        return Job(typed, folder / name, self.composer(typed))


def tell(folder: Path, message: str) -> None:
    """Add a line to a job's log."""
    with suppress(OSError):  # who trains the job will say so
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / LOG).open("a") as file:
            file.write(f"[{time.strftime('%Y-%m-%d %H:%M:%S')},000][linear_lab.sweep][INFO] {message}\n")
