"""A search from its command to its exit code: trials are drawn, run as jobs of a sweep, and told."""

import os

from hydra.core.override_parser.types import Override

from linear_lab import UserError
from linear_lab.runs.fingerprints import FREE
from linear_lab.sweep import board
from linear_lab.sweep.plan import identified, listed, plan_jobs
from linear_lab.sweep.search import Search, example
from linear_lab.sweep.space import space
from linear_lab.sweep.sweeper import GridSweeper


class SearchSweeper(GridSweeper):
    """A search with Optuna: each trial is a job, drawn with what the ones before it have found.

    Args:
        params: as `GridSweeper`; ranges among them.
        trials: how many there shall be in the end.
        seed: of the draws.
        prune: whether jobs that are worse than the others at the same epoch are stopped; read by the jobs.
        at_once: trials drawn and run together; None takes as many as the launcher has workers.
    """

    def __init__(self, params: dict[str, str], trials: int, seed: int, prune: bool, at_once: int | None = None) -> None:
        super().__init__(params)
        self.trials, self.seed, self.prune, self.at_once = trials, seed, prune, at_once

    def check(self) -> None:
        """As of a grid, and of a search."""
        super().check()
        for key, value in (("trials", self.trials), ("at_once", 1 if self.at_once is None else self.at_once)):
            if type(value) is not int or value < 1:
                raise UserError(f"hydra.sweeper.{key}={value}: must be a whole number from 1")
        if type(self.seed) is not int:
            raise UserError(f"hydra.sweeper.seed={self.seed}: must be a whole number")
        if type(self.prune) is not bool:
            raise UserError(f"hydra.sweeper.prune={self.prune}: choose true or false")

    def run(self, overrides: list[Override]) -> None:
        """Ask for trials, run them, tell their results, until there are as many as wanted."""
        fixed, searched = space(overrides)
        plan_jobs(listed([[*fixed, *example(searched)]]), self.composer)  # a mistake in a key leaves no study
        deciding = [item for item in fixed if item.partition("=")[0].partition(".")[0] not in FREE]
        search = Search(
            self.folder, deciding, searched,
            metric=self.config.metric, mode=self.config.mode, trials=self.trials, seed=self.seed,
        )  # fmt: skip
        self.watch.total = self.trials
        try:
            while (asked := search.ask(self.workers())) and not self.launches.stopped:
                lines = [[*fixed, *drawn] for _, drawn in asked]
                planned = self.plan(listed(lines), searched)
                hashes = identified(listed(lines), self.composer)["config_hash"]  # trials may draw the same job
                names = dict(planned.select("config_hash", "name").iter_rows())
                jobs = {number: names[key] for (number, _), key in zip(asked, hashes, strict=True)}
                for number, name in jobs.items():
                    search.name(number, name)
                self.run_jobs(planned)
                found = board.read(self.folder).jobs.select("name", "status", "value")
                told = {name: (status, value) for name, status, value in found.iter_rows()}
                for number, name in jobs.items():
                    status, value = told[name]
                    search.tell(number, {"status": status, "metrics": {str(self.config.metric): value}})
        finally:
            search.close()

    def workers(self) -> int:
        """How many trials are run at once."""
        if self.at_once:
            return self.at_once
        if hasattr(self.launcher, "joblib"):
            return int(self.launches.processes)
        return 1 if self.launches.in_process else os.cpu_count() or 1
