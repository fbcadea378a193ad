"""What a sweep is to do: its jobs, their names and configs, and what has become of them already."""

import difflib
import fcntl
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from linear_lab import UserError, files, terminal
from linear_lab.run import CONFIG, FREE, config_hash
from linear_lab.sweep.composer import Composer
from linear_lab.sweep.records import PLAN, read_plan
from linear_lab.sweep.records import Job as Found

LOCK = f".{PLAN}.lock"
LONGEST = 100  # characters of a name that had to be changed
SHOWN = 8  # differences that a message names


@dataclass
class Job:
    """A job as planned.

    Attributes:
        overrides: what was typed, for this job, in the order typed.
        config: what it composes to.
        hash: fingerprint of what in it decides the numbers: jobs of one hash are one job.
        name: of its folder.
    """

    overrides: list[str]
    config: dict[str, Any]
    hash: str = field(init=False)
    name: str = ""

    def __post_init__(self) -> None:
        self.hash = config_hash(self.config)


def group_hash(cfg: DictConfig) -> str:
    """Fingerprint of a config less its seed: jobs of one hash differ by chance alone."""
    alike: Any = OmegaConf.to_container(OmegaConf.merge(cfg, {"seed": 0}), resolve=True)  # other values may follow it
    return config_hash(alike)


def of_job(config: dict[str, Any], typed: Sequence[str], group: str) -> dict[str, Any]:
    """Return what a job's record says of it for its sweep.

    ``problem`` is a fingerprint of what must agree for two losses to be the same function of weight and bias.

    Args:
        config: as the job's, resolved.
        typed: its overrides.
        group: what all its seeds share.
    """
    data = {key: value for key, value in config["data"].items() if key not in ("batch_size", "order_seed")}
    problem = {"data": data, "loss": config["loss"], "bias": config["model"].get("bias") is False}
    return {
        "overrides": list(typed), "metric": config["metric"], "mode": config.get("mode", "min"), "group": group,
        "problem": config_hash(problem), "optimizer": str(config["optimizer"]["_target_"]).rpartition(".")[2],
        "lr": config["optimizer"].get("lr"), "pictures": bool((config["logger"] or {}).get("pictures")),
    }  # fmt: skip


def plan(
    grid: Sequence[Sequence[str]], compose: Composer, known: dict[str, str], named: Collection[str] = ()
) -> list[Job]:
    """Plan the jobs of a grid, each config once; ``known`` are the names of the jobs there are already, by hash.

    Keys in ``named`` are part of each name, whether they differ or not.

    Raises:
        UserError: for a key that some of the jobs do not have.
    """
    found: dict[str, Job] = {}
    for overrides in grid:
        try:
            job = Job(list(overrides), compose(overrides))
            terminal.heed()
        except (OmegaConfBaseException, HydraException) as error:
            raise UserError(mistake(grid, overrides, compose, error)) from error
        found.setdefault(job.hash, job)
    jobs = list(found.values())
    optimizers = [compose.option(job.overrides, "optimizer") for job in jobs]
    for job, name in zip(jobs, names([job.overrides for job in jobs], optimizers, named), strict=True):
        job.name = known.get(job.hash, name)
    return jobs


def names(grid: Sequence[Sequence[str]], optimizers: Sequence[str], named: Collection[str] = ()) -> list[str]:
    """Name the jobs' folders by the optimizer and by what differs, in the order typed.

    Keys in ``named`` count as different. A name that had to be changed to suit a file system, or cut, ends with a
    fingerprint of what it was.

    >>> names([["optimizer.lr=0.1", "seed=0"], ["optimizer.lr=0.2", "seed=0"]], ["sgd", "sgd"])
    ['sgd-lr=0.1', 'sgd-lr=0.2']
    """
    items = [[override.lstrip("+").partition("=") for override in overrides] for overrides in grid]
    keys = list(dict.fromkeys(key for row in items for key, _, _ in row))
    values = {key: {next((value for k, _, value in row if k == key), None) for row in items} for key in keys}
    differing = {key for key in keys if len(values[key]) > 1 or key in named}
    brief = Counter(key.rpartition(".")[2] for key in keys)
    found = []
    for row, optimizer in zip(items, optimizers, strict=True):
        parts = [] if any(key == "optimizer" and key in differing for key, _, _ in row) else [optimizer]
        for key, equals, value in row:
            if key in differing:
                last = key.rpartition(".")[2]
                parts.append(value if key == "optimizer" else f"{last if brief[last] == 1 else key}{equals}{value}")
        found.append(safe("-".join(parts)))
    counts = Counter(found)
    return [f"{name}-{fingerprint(row)}" if counts[name] > 1 else name for name, row in zip(found, grid, strict=True)]


def safe(name: str) -> str:
    """Make a name that any file system takes, and that differs where the given ones do.

    >>> safe("sgd-lr=0.1"), safe("sgd-path=../../x")
    ('sgd-lr=0.1', 'sgd-path=.._.._x-8451fa56')
    """
    plain = files.plain(name)
    if plain == name and plain[0] not in "._-":
        return plain
    return f"{files.plain(f'job{name}' if plain[:1] in '._-' else name)[:LONGEST]}-{fingerprint([name])}"


def fingerprint(texts: Sequence[str]) -> str:
    """Eight characters that tell texts apart."""
    return hashlib.sha256("\0".join(texts).encode(errors="surrogateescape")).hexdigest()[:8]


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


def changed(folder: Path, job: Job) -> str:
    """Say in what the config of a job differs from the one that it was trained with."""
    try:
        before: Any = OmegaConf.to_container(OmegaConf.load(folder / job.name / CONFIG), resolve=True)
        found = list(differences(before, job.config))
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError):
        found = []
    left = f", and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    return ", ".join(found[:SHOWN]) + left or "it has another config, which cannot be read"


def known_names(folder: Path, found: Sequence[Found]) -> dict[str, str]:
    """Names of the jobs that a sweep has already, by the hash of their config: by plan, and by record."""
    recorded = {job.name: job.record["config_hash"] for job in found if "config_hash" in job.record}
    planned = {name: key for key, name in read_hashes(folder).items()}
    return {key: name for name, key in (planned | recorded).items()}  # one of an interrupted overwrite has another plan


def read_hashes(folder: Path) -> dict[str, str]:
    """Read the names planned by earlier commands, by hash."""
    try:
        hashes = json.loads((folder / PLAN).read_bytes())["hashes"]
        return {str(key): str(name) for name, key in hashes.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return {}


def write_plan(folder: Path, jobs: Sequence[Job], metric: str, mode: str) -> None:
    """Add jobs to what the sweep's folder says is planned, before any is trained."""
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands add to it one after the other
        earlier, _ = read_plan(folder)
        planned = earlier.get("jobs", {}) | {job.name: job.overrides for job in jobs}
        hashes = {name: key for key, name in read_hashes(folder).items()} | {job.name: job.hash for job in jobs}
        text = json.dumps({"metric": metric, "mode": mode, "jobs": planned, "hashes": hashes}, indent=1)
        files.replace(folder / PLAN, text.encode(errors="surrogateescape"))
