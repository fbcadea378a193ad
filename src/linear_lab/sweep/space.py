"""What a search draws from: the ranges on the command line, as Optuna's distributions."""

import math
from collections.abc import Iterable
from decimal import Decimal

from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from linear_lab import UserError


def space(overrides: Iterable[Override]) -> tuple[list[str], dict[str, BaseDistribution]]:
    """Separate what is fixed from what is searched; of overrides with the same key the last counts.

    ``interval(a,b)`` is uniform on [a, b], ``tag(log,interval(a,b))`` uniform in the logarithm, ``int(interval(a,b))``
    and ``range(a,b,step)`` are integers (a range excludes b, as everywhere), ``choice(a,b)`` and ``a,b`` are
    categories.

    Returns:
        the fixed overrides as typed, and a distribution for each key that is searched.

    Raises:
        UserError: naming the override and the remedy, if it is no such range, or nothing is searched.
    """
    typed = {override.get_key_element(): override for override in overrides}
    searched = {key: distribution(override) for key, override in typed.items() if override.is_sweep_override()}
    if not searched:
        raise UserError("sweep=search: nothing to search; try a range, as in 'optimizer.lr=tag(log,interval(1e-4,1))'")
    return [str(override.input_line) for key, override in typed.items() if key not in searched], searched


def distribution(override: Override) -> BaseDistribution:
    """Return what a range of Hydra's grammar means to Optuna."""

    def mistake(what: str) -> UserError:
        return UserError(f"{override.input_line}: {what}")

    sweep = override.value()
    if not isinstance(sweep, (ChoiceSweep, IntervalSweep, RangeSweep)):
        raise mistake("a pattern cannot be searched; try the options themselves, as in choice(sgd,adam)")
    if unknown := sweep.tags - {"log"}:
        raise mistake(f"no tag is called {min(unknown)}; try tag(log,interval(1e-4,1)), or leave the tag out")
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
            raise mistake("a step of 0 leads nowhere; try range(1,9,2)")
        end = start + (math.ceil((stop - start) / step) - 1) * step  # the last value before stop
        kind = int if all(isinstance(value, int) for value in (low, high, sweep.step)) else float
        low, high = map(kind, (start, end) if step > 0 else (end, start))
    if low > high:
        raise mistake("no value lies in it; the lower bound comes first, as in interval(1e-4,1) or range(1,9)")
    if log and low <= 0:
        raise mistake("only numbers above 0 have a logarithm; try a lower bound as 1e-4, or leave the tag out")
    if log and step:
        raise mistake("a logarithm has no steps; try tag(log,int(interval(1,1000))), or leave the tag out")
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log, step=abs(int(step or 1)))
    return FloatDistribution(low, high, log=log, step=abs(float(step)) if step else None)
