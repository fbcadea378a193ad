"""What a sweep is to do: a table with a row for each job and a column for each key that was typed."""

import difflib
import fcntl
import hashlib
import itertools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from linear_lab import UserError, files, terminal
from linear_lab.fingerprints import FREE, config_hash, decides, leaves, poses, problem_hash, total
from linear_lab.run import CONFIG
from linear_lab.sweep.composer import Composer, Places

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

PLAN, SETTINGS = "plan.parquet", "sweep.json"  # in the sweep's folder: its jobs; the metric, and how it ranks
LOCK = f".{SETTINGS}.lock"
LONGEST = 100  # characters of a name that had to be changed
SHOWN = 8  # differences that a message names
NAME = r"^[A-Za-z0-9=+](?:[A-Za-z0-9._=+-]{0,118}[A-Za-z0-9_=+])?$"  # what any file system takes as it is
COLUMNS = ("name", "config_hash", "group", "problem")  # of the plan, before the typed keys


class Job(NamedTuple):
    """A job as planned.

    Attributes:
        name: of its folder.
        hash: fingerprint of what in its config decides the numbers: jobs of one hash are one job.
        overrides: what was typed, for this job, in the order typed.
    """

    name: str
    hash: str
    overrides: list[str]


def grid(overrides: Sequence[Override], limit: int, remedy: str) -> "pl.DataFrame":
    """Return all combinations of what is typed, as a table of texts with a column for each key.

    The keys are in the order typed, and the values of the last one vary first.

    Raises:
        UserError: for a sweep without end or without a job, and for more than ``limit`` jobs.
    """
    import numpy as np
    import polars as pl

    values: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for override in overrides:
        if not override.is_sweep_override():
            texts = [override.get_value_element_as_str()]
        elif not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: has no end of values to try; type some, or add sweep=search")
        else:
            texts = list(itertools.islice(override.sweep_string_iterator(), limit + 1))
        key = str(override.get_key_element())
        values[key], counts[key] = texts, len(texts)
        if len(texts) > limit and isinstance(swept := override.value(), RangeSweep):  # it was not written out
            start, stop, step = (float(value or 0) for value in (swept.start, swept.stop, swept.step))
            counts[key] = math.ceil((stop - start) / step)
    count = math.prod(counts.values())
    if not count:
        raise UserError("the sweep has no job: one of its ranges is empty")
    if count > limit:
        raise UserError(f"the sweep has {count:,} jobs, more than {limit:,}; {remedy}")
    columns, left = {}, count
    for key, texts in values.items():
        left //= len(texts)
        columns[key] = pl.Series(key, texts, pl.String).gather(np.arange(count) // left % len(texts))
    return pl.DataFrame(columns, height=count)


def listed(rows: Sequence[Sequence[str]]) -> "pl.DataFrame":
    """Return jobs whose overrides are listed one by one as `grid` returns combinations."""
    import polars as pl

    typed = [dict(line.partition("=")[::2] for line in row) for row in rows]
    keys = dict.fromkeys(key for row in typed for key in row)
    return pl.DataFrame({key: [row.get(key) for row in typed] for key in keys}, dict.fromkeys(keys, pl.String))


def plan(
    typed: "pl.DataFrame", composer: Composer, known: "pl.DataFrame | None" = None, named: Collection[str] = ()
) -> "pl.DataFrame":
    """Plan jobs, each config once.

    Args:
        typed: as `grid` returns it.
        composer: of their configs.
        known: ``name`` and ``config_hash`` of the jobs that there are already.
        named: keys that are part of each name, whether they differ or not.

    Returns:
        `COLUMNS`, and those of ``typed``.

    Raises:
        UserError: for a key that some of the jobs do not have.
    """
    import polars as pl

    frame = identified(typed, composer).unique("config_hash", keep="first", maintain_order=True)
    frame = frame.with_columns(name=names(frame.select(typed.columns), composer.default("optimizer"), named))
    twice = frame["name"].is_duplicated()
    frame = frame.with_columns(
        name=pl.when(twice).then(pl.format("{}-{}", "name", pl.col("config_hash").str.head(8))).otherwise("name")
    )
    if known is not None and len(known):
        before = known.select("config_hash", before="name").unique("config_hash", keep="last")
        frame = frame.join(before, on="config_hash", how="left", maintain_order="left")
        frame = frame.with_columns(name=pl.coalesce("before", "name"))
    return frame.select(*COLUMNS, *typed.columns)


class Part(NamedTuple):
    """Jobs whose configs have one shape.

    Attributes:
        fixed: the overrides that give the shape.
        places: where the values of the other keys stand.
        rows: of the table.
    """

    fixed: list[str]
    places: Places
    rows: "pl.DataFrame"


def shapes(typed: "pl.DataFrame", composer: Composer) -> Iterator[Part]:
    """Cut a table of typed keys into parts that compose to one shape.

    Raises:
        UserError: for a key that some of the jobs do not have.
    """
    keys = [key for key in typed.columns if not key.startswith("_")]
    columns = [key for key in keys if all(composer.is_column(key, text) for text in typed[key].drop_nulls().unique())]
    yield from _shapes(typed, [key for key in keys if key not in columns], columns, composer)


def _shapes(typed: "pl.DataFrame", shaping: list[str], columns: list[str], composer: Composer) -> Iterator[Part]:
    parts = typed.partition_by(shaping, maintain_order=True) if shaping else [typed]
    for rows in parts:
        first = rows.row(0, named=True)
        fixed = [f"{key}={first[key]}" for key in shaping if first[key] is not None]
        present = [key for key in columns if first[key] is not None]
        try:
            places = composer.places(fixed, present)
            terminal.heed()
        except (OmegaConfBaseException, HydraException) as error:
            every = [
                [
                    f"{key}={text}"
                    for key, text in part.row(0, named=True).items()
                    if text is not None and not key.startswith("_")
                ]
                for part in parts
            ]
            mine = [f"{key}={first[key]}" for key in (*shaping, *present) if first[key] is not None]
            raise UserError(mistake(every, mine, composer, error)) from error
        if isinstance(places, Places):
            yield Part(fixed, places, rows)
        else:  # their values become parts of others: each is composed by itself
            yield from _shapes(rows, [*shaping, *places], [key for key in columns if key not in places], composer)


def identified(typed: "pl.DataFrame", composer: Composer) -> "pl.DataFrame":
    """Add the fingerprints: of the config, of the config less its seed, and of the problem."""
    import numpy as np
    import polars as pl

    found = []
    for fixed, places, rows in shapes(typed.with_row_index("_at"), composer):
        alike = places
        if "seed" not in places.of_key:  # other values may follow it
            other = composer.places([*(item for item in fixed if item[:5] != "seed="), "seed=0"], [*places.of_key])
            alike = other if isinstance(other, Places) else places
        sums = {"config_hash": (places, decides), "group": (alike, decides), "problem": (places, poses)}
        terms = {name: np.full(len(rows), total(of.fixed, counts), np.uint64) for name, (of, counts) in sums.items()}
        for key, paths in places.of_key.items():
            texts, codes = coded(rows[key])
            values = [composer.value(key, text) for text in texts]
            for name, (_, counts) in sums.items():
                chosen = [0] * len(values) if (name, key) == ("group", "seed") else values
                of_value = [sum(total(leaves(value, path), counts) for path in paths) % 2**64 for value in chosen]
                terms[name] += np.array(of_value, np.uint64)[codes]
        found.append(rows.with_columns(**{name: pl.Series(as_hex(values)) for name, values in terms.items()}))
    return pl.concat(found).sort("_at").drop("_at")


def coded(column: "pl.Series") -> "tuple[pl.Series, np.ndarray[Any, Any]]":
    """Return the distinct values of a column, in the order in which they come, and which of them each row has."""
    distinct = column.unique(maintain_order=True)
    numbered = distinct.to_frame().with_row_index("_code")
    codes = column.to_frame().join(numbered, on=column.name, how="left", maintain_order="left", nulls_equal=True)
    return distinct, codes["_code"].to_numpy()


def as_hex(values: "np.ndarray[Any, Any]") -> list[str]:
    """Write numbers of 64 bits as 16 characters each."""
    text = values.astype(">u8").tobytes().hex()
    return [text[at : at + 16] for at in range(0, len(text), 16)]


def names(typed: "pl.DataFrame", optimizer: str, named: Collection[str] = ()) -> "pl.Series":
    """Name the jobs' folders by the optimizer and by what differs, in the order typed.

    Keys in ``named`` count as different. A name that had to be changed to suit a file system, or cut, ends with a
    fingerprint of what it was.

    >>> names(listed([["optimizer.lr=0.1", "seed=0"], ["optimizer.lr=0.2", "seed=0"]]), "sgd").to_list()
    ['sgd-lr=0.1', 'sgd-lr=0.2']
    """
    import polars as pl

    keys = {key: key.lstrip("+") for key in typed.columns}
    brief = Counter(key.rpartition(".")[2] for key in keys.values())
    parts = []
    for column, key in keys.items():
        if typed[column].n_unique() > 1 or key in named:
            last = key.rpartition(".")[2]
            shown = last if brief[last] == 1 else key
            parts.append(pl.col(column) if key == "optimizer" else pl.lit(f"{shown}=") + pl.col(column))
    chosen = next((column for column, key in keys.items() if key == "optimizer"), None)
    if chosen is None:
        parts.insert(0, pl.lit(optimizer))
    elif typed[chosen].n_unique() == 1 and "optimizer" not in named:
        parts.insert(0, pl.col(chosen))
    joined = typed.select(name=pl.concat_str(parts, separator="-", ignore_nulls=True)).to_series()
    odd = ~joined.str.contains(NAME)
    return joined.scatter(odd.arg_true(), [safe(name) for name in joined.filter(odd)]) if odd.any() else joined


def safe(name: str) -> str:
    """Make a name that any file system takes, and that differs where the given ones do.

    >>> safe("sgd-lr=0.1"), safe("sgd-path=../../x")
    ('sgd-lr=0.1', 'sgd-path=.._.._x-8451fa56')
    """
    plain = files.plain(name)
    if plain == name and plain[0] not in "._-":
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{files.plain(f'job{name}' if plain[:1] in '._-' else name)[:LONGEST]}-{digest}"


def jobs(frame: "pl.DataFrame") -> list[Job]:
    """Return the rows of a plan one by one."""
    typed = overrides(frame).to_list()
    return [Job(*row) for row in zip(frame["name"], frame["config_hash"], typed, strict=True)]


def overrides(rows: "pl.DataFrame") -> "pl.Series":
    """Return the overrides of planned jobs as a column of lists."""
    import polars as pl

    typed = [pl.format("{}={}", pl.lit(key), pl.col(key)) for key in rows.columns if key not in COLUMNS]
    if not typed:
        return pl.Series("overrides", [[]] * len(rows), pl.List(pl.String))
    return rows.select(overrides=pl.concat_list(typed).list.drop_nulls()).to_series()


def group_hash(cfg: DictConfig) -> str:
    """Fingerprint of a config less its seed: jobs of one hash differ by chance alone."""
    alike: Any = OmegaConf.to_container(OmegaConf.merge(cfg, {"seed": 0}), resolve=True)  # other values may follow it
    return config_hash(alike)


def of_job(config: dict[str, Any], typed: Sequence[str], group: str, problem: str = "") -> dict[str, Any]:
    """Return what a job's record says of it for its sweep.

    Args:
        config: as the job's, resolved.
        typed: its overrides.
        group: what all its seeds share.
        problem: see `problem_hash`; computed where it is not known.
    """
    return {
        "overrides": list(typed), "metric": config["metric"], "mode": config.get("mode", "min"), "group": group,
        "problem": problem or problem_hash(config),
        "optimizer": str(config["optimizer"]["_target_"]).rpartition(".")[2],
        "lr": config["optimizer"].get("lr"), "pictures": bool((config["logger"] or {}).get("pictures")),
    }  # fmt: skip


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


def read_settings(folder: Path) -> dict[str, Any]:
    """Read by which metric a sweep ranks, and how; empty where that cannot be read."""
    try:
        found = json.loads((folder / SETTINGS).read_bytes())
        return found if isinstance(found, dict) else {}
    except (OSError, ValueError, RecursionError):
        return {}


def read_plan(folder: Path) -> "pl.DataFrame":
    """Read what earlier commands have planned; no rows where there is no plan.

    Raises:
        UserError: if the plan cannot be read.
    """
    import polars as pl

    empty = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
    if not (folder / PLAN).exists():
        return empty
    try:
        found = pl.read_parquet(folder / PLAN, memory_map=False)
        return pl.concat([empty, found.cast(pl.String)], how="diagonal")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{PLAN} cannot be read ({str(error).splitlines()[0]})") from error


def write_plan(folder: Path, jobs: "pl.DataFrame", metric: str, mode: str) -> None:
    """Add jobs to what the sweep's folder says is planned, before any is trained."""
    import polars as pl

    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two commands add to it one after the other
        try:
            earlier = read_plan(folder)
        except UserError:  # damaged: the jobs say themselves what they are
            earlier = jobs.clear()
        order = pl.concat([earlier.select("name"), jobs.select("name")]).unique(maintain_order=True)
        others = earlier.join(jobs.select("name"), on="name", how="anti")
        merged = pl.concat([others, jobs], how="diagonal")
        merged = order.join(merged, on="name", how="left", maintain_order="left")
        files.replace(folder / SETTINGS, json.dumps({"metric": metric, "mode": mode}).encode())
        with files.writing(folder / PLAN) as part:
            merged.write_parquet(part)
