"""A search from its command to its exit code: trials are drawn, and run as jobs of a sweep."""

from typing import Any

from hydra.core.override_parser.types import Override

from linear_lab import UserError
from linear_lab.runs.fingerprints import FREE
from linear_lab.sweep import board
from linear_lab.sweep.plan import identified, listed, plan
from linear_lab.sweep.search import Search, as_overrides
from linear_lab.sweep.space import space
from linear_lab.sweep.sweeper import GridSweeper


class SearchSweeper(GridSweeper):
    """A search with Optuna: each trial is a job, drawn from the results of those before it.

    ``at_once`` is how many trials are drawn and run together; None takes as many as the launcher has workers. The jobs
    read ``prune``.
    """

    def __init__(self, *, trials: int, seed: int, prune: bool, at_once: int | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.trials, self.seed, self.prune, self.at_once = trials, seed, prune, at_once

    def check(self) -> None:
        super().check()
        for key, value in (("trials", self.trials), ("at_once", 1 if self.at_once is None else self.at_once)):
            if type(value) is not int or value < 1:
                raise UserError(f"hydra.sweeper.{key}={value}: must be a whole number from 1")
        if type(self.seed) is not int:
            raise UserError(f"hydra.sweeper.seed={self.seed}: must be a whole number")
        if type(self.prune) is not bool:
            raise UserError(f"hydra.sweeper.prune={self.prune}: choose true or false")

    def run(self, overrides: list[Override]) -> None:
        """Draw trials, run them, and learn from their results, until there are as many as wanted."""
        fixed, searched = space(overrides)
        plan(
            listed([[*fixed, *as_overrides(searched)]]), self.composer
        )  # raises for a mistake in a key, before a study
        deciding = [item for item in fixed if item.partition("=")[0].partition(".")[0] not in FREE]
        metric, mode = str(self.config.metric), self.config.mode
        search = Search(self.folder, deciding, searched, metric=metric, mode=mode, trials=self.trials, seed=self.seed)
        self.watch.total = self.trials
        try:
            while (trials := search.ask(self.at_once or self.launches.processes)) and not self.launches.stopped:
                typed = listed([[*fixed, *drawn] for _, drawn in trials])
                planned = self.plan(typed, searched)
                names = dict(planned.select("config_hash", "name").iter_rows())  # two trials may draw one job
                hashes = identified(typed, self.composer)["config_hash"]
                jobs = {number: names[key] for (number, _), key in zip(trials, hashes, strict=True)}
                for number, name in jobs.items():
                    search.name(number, name)
                self.run_jobs(planned)
                rows = board.read(self.folder).jobs.select("name", "status", "value")
                results = rows.rows_by_key("name", named=True, unique=True)
                for number, name in jobs.items():
                    status, value = results[name]["status"], results[name]["value"]
                    search.tell(number, {"status": status, "metrics": {metric: value}})
        finally:
            search.close()
