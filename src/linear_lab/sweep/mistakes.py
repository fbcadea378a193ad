"""What is wrong with what was typed for a sweep, and in what a job's config differs from an earlier one."""

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from linear_lab.runs.fingerprints import FREE
from linear_lab.runs.folder import CONFIG
from linear_lab.sweep.composer import Composer

SHOWN = 8  # differences that a message names


def mistake(grid: Sequence[Sequence[str]], overrides: Sequence[str], compose: Composer, error: Exception) -> str:
    """Say what is wrong with a job's overrides: above all a key that only some of the chosen options have."""
    for item in compose.choices(overrides):
        if not composes(compose, [item]):
            return f"{item}: choose one of {', '.join(compose.options(item.partition('=')[0]))}"
    wrong = next((item for item in overrides if not composes(compose, [*compose.choices(overrides), item])), None)
    if wrong is None:
        return f"{' '.join(overrides)}: {error}"
    key = wrong.partition("=")[0]
    group, _, name = key.partition(".")
    mine = compose.option(overrides, group)
    others = {compose.option(row, group) for row in grid if composes(compose, [*compose.choices(row), wrong])}
    if not others or not name:
        there = compose(compose.choices(overrides)).get(group)
        meant = difflib.get_close_matches(name, list(there) if isinstance(there, dict) else [], n=1)
        hint = f"; did you mean {group}.{meant[0]}?" if meant else ""
        return f"{wrong}: {str(error).splitlines()[0]}{hint}"
    return (
        f"{wrong}: {group}={mine} has no {name}, which {', '.join(sorted(others))} has; make it two commands with one "
        f"name=<name>, which add to one sweep: one with {group}={','.join(sorted(others))} and {key}=..., "
        f"one with {group}={mine} without it"
    )


def composes(compose: Composer, overrides: Sequence[str]) -> bool:
    """Tell whether overrides can be composed."""
    try:
        compose(overrides)
    except (OmegaConfBaseException, HydraException):
        return False
    return True


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield what differs between two configs, but for what decides no number.

    >>> list(differences({"optimizer": {"lr": 0.1}, "name": "a"}, {"optimizer": {"lr": 0.2}, "seed": 1}))
    ['optimizer.lr was 0.1, is 0.2', 'seed was -, is 1']
    """
    for key in dict.fromkeys([*before, *now]):
        if not prefix and key in FREE:
            continue
        old, new = before.get(key, "-"), now.get(key, "-")
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old}, is {new}"


def changed(folder: Path, config: dict[str, Any]) -> str:
    """Say in what the config of a job differs from the one that its run folder has."""
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(folder / CONFIG), resolve=True)
        found = list(differences(before, config))
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError):
        found = []
    left = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + left or "it has another config, which cannot be read"
