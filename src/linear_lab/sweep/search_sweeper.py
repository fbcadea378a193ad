"""The sweeper of ``sweep=search``: converts ranges to distributions, and runs trials as jobs of a sweep."""

import math
from collections.abc import Iterable
from decimal import Decimal
from typing import Any

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from linear_lab import UserError
from linear_lab.runs.fingerprints import NOT_HASHED
from linear_lab.sweep import board
from linear_lab.sweep.plan import listed, plan_jobs, with_fingerprints
from linear_lab.sweep.search import Search, Space, as_overrides
from linear_lab.sweep.sweeper import GridSweeper


class SearchSweeper(GridSweeper):
    """A search with Optuna: each trial is a job, whose parameters are drawn given the results of earlier ones.

    conf/hydra/sweeper/search.yaml describes the arguments. Jobs read ``prune`` from Hydra's config.
    """

    def __init__(self, *, trials: int, seed: int, prune: bool, at_once: int | None = None, **others: Any) -> None:
        super().__init__(**others)
        self.trials, self.seed, self.prune, self.at_once = trials, seed, prune, at_once

    def check(self) -> None:
        super().check()
        for key, value in (("trials", self.trials), ("at_once", 1 if self.at_once is None else self.at_once)):
            if type(value) is not int or value < 1:
                raise UserError(f"hydra.sweeper.{key}={value}: must be a whole number of at least 1")
        if type(self.seed) is not int:
            raise UserError(f"hydra.sweeper.seed={self.seed}: must be a whole number")
        if type(self.prune) is not bool:
            raise UserError(f"hydra.sweeper.prune={self.prune}: choose true or false")

    def run(self, overrides: list[Override]) -> None:
        """Draw trials, run them, and store their results, until there are ``trials`` of them."""
        fixed, searched = space(overrides)
        plan_jobs(
            listed([[*fixed, *as_overrides(searched)]]), self.composer
        )  # refuses a mistake before a study is made
        deciding = [item for item in fixed if item.partition("=")[0].partition(".")[0] not in NOT_HASHED]
        if self.config.metric is None:
            raise UserError("metric=null: a search optimizes a metric; set one, such as metric=val/loss")
        metric, mode = self.config.metric, self.config.mode
        search = Search(self.folder, deciding, searched, metric=metric, mode=mode, trials=self.trials, seed=self.seed)
        self.watch.total = self.trials
        try:
            while (trials := search.ask(self.at_once or self.launches.processes)) and not self.launches.stopped:
                typed = listed([[*fixed, *drawn] for _, drawn in trials])
                planned = self.plan(typed, searched)
                names = dict(planned.select("config_hash", "name").iter_rows())  # two trials may be one job
                hashes = with_fingerprints(typed, self.composer)["config_hash"]
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


def space(overrides: Iterable[Override]) -> tuple[list[str], Space]:
    """Return the fixed overrides as typed, and the distribution of each key that is searched.

    The last of several overrides with the same key counts. ``interval(a,b)`` is uniform on [a, b];
    ``tag(log,interval(a,b))`` is uniform in the logarithm; ``int(interval(a,b))`` and ``range(a,b,step)`` give
    integers, without b for a range; ``choice(a,b)`` and ``a,b`` give categories.
    """
    typed = {override.get_key_element(): override for override in overrides}
    searched = {key: distribution(override) for key, override in typed.items() if override.is_sweep_override()}
    if not searched:
        raise UserError("sweep=search: there is no range; give one, as in 'optimizer.lr=tag(log,interval(1e-4,1))'")
    return [str(override.input_line) for key, override in typed.items() if key not in searched], searched


def distribution(override: Override) -> BaseDistribution:
    """Convert a range of Hydra's grammar to a distribution of Optuna."""

    def mistake(what: str) -> UserError:
        return UserError(f"{override.input_line}: {what}")

    sweep = override.value()
    if not isinstance(sweep, (ChoiceSweep, IntervalSweep, RangeSweep)):
        raise mistake("a pattern cannot be searched; list the options, as in choice(sgd,adam)")
    if unknown := sweep.tags - {"log"}:
        raise mistake(f"there is no tag {min(unknown)}; try tag(log,interval(1e-4,1)), or leave the tag out")
    log = "log" in sweep.tags
    if isinstance(sweep, ChoiceSweep):
        if log:
            raise mistake("categories have no logarithm; try tag(log,interval(1e-4,1)), or leave the tag out")
        return CategoricalDistribution(list(dict.fromkeys(override.sweep_string_iterator())))
    low, high, step = sweep.start, sweep.end if isinstance(sweep, IntervalSweep) else sweep.stop, None
    if low is None or high is None or not (math.isfinite(low) and math.isfinite(high)):
        raise mistake("its bounds are not finite; try interval(1e-4,1)")
    if isinstance(sweep, RangeSweep):
        start, stop, step = (Decimal(str(value)) for value in (low, high, sweep.step))  # as typed: 0.1 is 1/10
        if not step:
            raise mistake("the step must not be 0; try range(1,9,2)")
        end = start + (math.ceil((stop - start) / step) - 1) * step  # the last value before stop
        kind = int if all(isinstance(value, int) for value in (low, high, sweep.step)) else float
        low, high = map(kind, (start, end) if step > 0 else (end, start))
    if low > high:
        raise mistake("it has no value; the lower bound comes first, as in interval(1e-4,1) or range(1,9)")
    if log and low <= 0:
        raise mistake("only numbers above 0 have a logarithm; raise the lower bound, as to 1e-4, or leave the tag out")
    if log and step:
        raise mistake("the tag log allows no step; try tag(log,int(interval(1,1000))), or leave the tag out")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=abs(int(step or 1)))
    return FloatDistribution(low, high, log=log, step=abs(float(step)) if step else None)
