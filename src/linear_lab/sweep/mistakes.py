"""Error messages for the overrides of a sweep, and for jobs whose config has changed."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import UserError
from linear_lab.config import as_dict, saved_config
from linear_lab.overrides import dotted, unknown
from linear_lab.runs.fingerprints import NOT_HASHED
from linear_lab.runs.folder import Run
from linear_lab.sweep.composer import Composer
from linear_lab.text import first_line

SHOWN = 8  # differences that a message lists


def explain(jobs: Sequence[Sequence[str]], overrides: Sequence[str], compose: Composer, error: Exception) -> str:
    """Return the error message for overrides of a job that cannot be composed, given the overrides of all jobs."""
    choices = compose.choices(overrides)
    for item in choices:
        if not _composes(compose, [item]):
            return f"{item}: choose one of {', '.join(compose.options(item.partition('=')[0]))}"
    wrong = next((item for item in overrides if not _composes(compose, [*choices, item])), " ".join(overrides))
    key = wrong.partition("=")[0]
    group, _, name = key.partition(".")
    option = compose.option(overrides, group)
    others = {compose.option(row, group) for row in jobs if _composes(compose, [*compose.choices(row), wrong])}
    if not others or not name:
        cfg = compose.config(choices)
        names = [*dotted(OmegaConf.to_container(cfg))]
        return unknown(wrong, key, names, cfg) if key not in names else f"{wrong}: {first_line(error)}"
    return (
        f"{wrong}: {group}={option} has no {name}, unlike {', '.join(sorted(others))}; run two commands with the same "
        f"name=<name>, which make one sweep: one with {group}={','.join(sorted(others))} and {key}=..., "
        f"one with {group}={option} and without {key}"
    )


def _composes(compose: Composer, overrides: Sequence[str]) -> bool:
    try:
        compose(overrides)
    except (OmegaConfBaseException, HydraException):
        return False
    return True


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the differences of two configs, except in keys that change no result.

    >>> list(differences({"optimizer": {"lr": 0.1}, "name": "a"}, {"optimizer": {"lr": 0.2}, "seed": 1}))
    ['optimizer.lr was 0.1, is 0.2', 'seed was -, is 1']
    """
    for key in dict.fromkeys([*before, *now]):
        if not prefix and key in NOT_HASHED:
            continue
        old, new = before.get(key, "-"), now.get(key, "-")
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key} was {old}, is {new}"


def read_config(folder: Path) -> dict[str, Any] | None:
    """Read the config of a run folder, and resolve references; None if it cannot be read."""
    try:
        return as_dict(saved_config(Run(folder)))
    except UserError:
        return None


def config_changes(folder: Path, config: dict[str, Any]) -> str:
    """Return the differences between the config of a job and the one in its run folder, as text."""
    before = read_config(folder)
    lines = [] if before is None else list(differences(before, config))
    more = f", and {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""
    return ", ".join(lines[:SHOWN]) + more or "the config in its run folder cannot be read"
