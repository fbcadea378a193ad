"""The plan of a sweep: a table with one row per job and one column per typed key."""

import hashlib
import math
import sys
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import polars as pl
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import UserError
from linear_lab.config import absolute
from linear_lab.runs import atomic
from linear_lab.runs.fingerprints import affects_numbers, config_hash, defines_problem, hash_sum, leaves, problem_hash
from linear_lab.runs.record import Strict, Text
from linear_lab.sweep import PLAN, SETTINGS, results
from linear_lab.sweep.composer import Composer, Places
from linear_lab.sweep.mistakes import explain
from linear_lab.terminal import layout
from linear_lab.terminal.signals import raise_if_interrupted
from linear_lab.text import first_line, joined

if TYPE_CHECKING:
    import numpy as np

LOCK = f".{SETTINGS}.lock"
COLUMNS = ("name", "config_hash", "group", "problem")  # the columns of a plan that precede those of the typed keys
EMPTY = pl.DataFrame(schema=dict.fromkeys(COLUMNS, pl.String))
NOTHING = "_"  # the only column if no key was typed
MAX_NAME = 100  # characters of a job's name before its fingerprint


class Part(NamedTuple):
    """Jobs whose configs have the same keys, and differ only in the values of columns."""

    fixed: list[str]  # the overrides that all these jobs share
    places: Places  # where the values of the other keys go
    rows: pl.DataFrame


def grid(overrides: Sequence[Override], limit: int, remedy: str) -> pl.DataFrame:
    """Return all combinations of the typed values as a table of strings, one column per key; the last varies fastest.

    Raises:
        UserError: if the sweep is infinite, has no job, or has more than ``limit`` jobs.
    """
    last = {str(override.get_key_element()): override for override in overrides}
    count = math.prod(map(count_of, last.values()))
    if not count:
        raise UserError("the sweep has no job, since one of its ranges is empty; check start, stop and step")
    if count > limit:
        raise UserError(f"the sweep has {count:,} jobs, which is more than {limit:,}; {remedy}")
    columns, repeats = {}, count
    for key, override in last.items():
        texts = _texts_of(override)
        repeats //= len(texts)
        rows = pl.int_range(count, eager=True) // repeats % len(texts)
        columns[key] = pl.Series(key, texts, pl.String).gather(rows)
    return pl.DataFrame(columns or {NOTHING: [None]}, None if columns else {NOTHING: pl.String})


def _texts_of(override: Override) -> list[str]:
    if not override.is_sweep_override():
        return [override.get_value_element_as_str()]
    swept = override.value()
    if not isinstance(swept, RangeSweep) or isinstance(swept.range(), range) or swept.shuffle:
        return [*override.sweep_string_iterator()]
    start, step = Decimal(str(swept.start)), Decimal(str(swept.step))  # 0.1, 0.2, 0.3 and not 0.30000000000000004
    return [str(float(start + k * step)) for k in range(count_of(override))]


def count_of(override: Override) -> int:
    """Return the number of values of an override, without listing them; raise UserError if it is infinite."""
    if not override.is_sweep_override():
        return 1
    swept = override.value()
    if override.is_discrete_sweep() and not isinstance(swept, RangeSweep):
        return sum(1 for _ in override.sweep_iterator())
    numbers: list[Any] = [swept.start, swept.stop, swept.step] if isinstance(swept, RangeSweep) else [0]
    if not numbers[-1] or not all(map(math.isfinite, numbers)):
        raise UserError(f"{override.input_line}: it has infinitely many values; list some, or add sweep=search")
    start, stop, step = (Decimal(str(number)) for number in numbers)
    return max(0, math.ceil((stop - start) / step))


def listed(rows: Sequence[Sequence[str]]) -> pl.DataFrame:
    """Return the table of jobs whose overrides are listed job by job, in the form of the table that `grid` returns."""
    typed = [dict(line.partition("=")[::2] for line in row) for row in rows]
    keys = dict.fromkeys(key for row in typed for key in row)
    return pl.DataFrame({key: [row.get(key) for row in typed] for key in keys}, dict.fromkeys(keys, pl.String))


def plan_jobs(
    typed: pl.DataFrame, composer: Composer, earlier: pl.DataFrame | None = None, named: Collection[str] = ()
) -> pl.DataFrame:
    """Plan jobs: return a table with `COLUMNS` and the columns of ``typed``, in which each config appears once.

    Jobs of ``earlier`` keep their names. Keys in ``named`` are part of each name, even if all jobs agree in them.

    Raises:
        UserError: for a key that the configs of some jobs do not have.
    """
    frame = with_fingerprints(typed, composer).unique("config_hash", keep="first", maintain_order=True)
    frame = frame.with_columns(name=names(frame.select(typed.columns), composer.default("optimizer"), named))
    with_hash = pl.format("{}-{}", "name", pl.col("config_hash").str.head(8))
    frame = frame.with_columns(name=pl.when(pl.col("name").is_duplicated()).then(with_hash).otherwise("name"))
    if earlier is not None:
        before = earlier.select("config_hash", before="name").unique("config_hash", keep="last")
        frame = frame.join(before, on="config_hash", how="left", maintain_order="left")
        frame = frame.with_columns(name=pl.coalesce("before", "name"))
    return frame.select(*COLUMNS, *typed.columns)


def split_by_shape(typed: pl.DataFrame, composer: Composer) -> Iterator[Part]:
    """Split a table of typed keys into parts whose configs have the same keys; raises the errors of `plan_jobs`."""
    keys = [key for key in typed.columns if not key.startswith("_")]
    complete = [key for key in keys if not typed[key].has_nulls()]
    columns = [key for key in complete if all(composer.is_column(key, text) for text in typed[key].unique())]
    yield from _split(typed, [key for key in keys if key not in columns], columns, composer)


def _split(typed: pl.DataFrame, shaping: list[str], columns: list[str], composer: Composer) -> Iterator[Part]:
    parts = typed.partition_by(shaping, maintain_order=True) if shaping else [typed]
    for rows in parts:
        first = rows.row(0, named=True)
        fixed = [f"{key}={first[key]}" for key in shaping if first[key] is not None]
        try:
            places = composer.places(fixed, columns)
            raise_if_interrupted()
        except (OmegaConfBaseException, HydraException) as error:
            firsts = pl.concat([part.head(1) for part in parts]).select(pl.exclude("^_.*$"))
            line = [*fixed, *(f"{key}={first[key]}" for key in columns)]
            raise UserError(explain(overrides(firsts).to_list(), line, composer, error)) from error
        if isinstance(places, Places):
            yield Part(fixed, places, rows)
        else:  # the values of these keys become parts of other values, so each of them is composed separately
            yield from _split(rows, [*shaping, *places], [key for key in columns if key not in places], composer)


def with_fingerprints(typed: pl.DataFrame, composer: Composer) -> pl.DataFrame:
    """Add the fingerprints of each job's config, of its config without the seed, and of its problem."""
    parts = []
    for fixed, places, rows in split_by_shape(typed.with_row_index("_at"), composer):
        seedless = places
        if "seed" not in places.of_key:  # other leaves may refer to the seed
            others = [item for item in fixed if not item.startswith("seed=")]
            composed = composer.places([*others, "seed=0"], [*places.of_key])
            seedless = composed if isinstance(composed, Places) else places
        sums = {"config_hash": (places, affects_numbers), "group": (seedless, affects_numbers)}
        sums["problem"] = places, defines_problem
        columns = {
            name: pl.repeat(hash_sum(of.fixed, counts), len(rows), dtype=pl.UInt64, eager=True)
            for name, (of, counts) in sums.items()
        }
        for key in places.of_key:
            texts, codes = factorize(rows[key])
            values = [composer.value(key, text) for text in texts]
            for name, (of, counts) in sums.items():  # without the seed, a value may go to fewer leaves
                chosen = [0] * len(values) if (name, key) == ("group", "seed") else values
                terms = [sum(hash_sum(leaves(v, path), counts) for path in of.of_key[key]) % 2**64 for v in chosen]
                columns[name] += pl.Series(terms, dtype=pl.UInt64).gather(codes)  # modulo 2^64
        in_hex = {name: column.map_elements("{:016x}".format, pl.String) for name, column in columns.items()}
        parts.append(rows.with_columns(**in_hex))
    return pl.concat(parts).sort("_at").drop("_at")


def factorize(column: pl.Series) -> "tuple[pl.Series, np.ndarray[Any, Any]]":
    """Return the distinct values of a column, in order of appearance, and the index of each row's value, uint32."""
    distinct = column.unique(maintain_order=True)
    return distinct, column.cast(pl.Enum(distinct)).to_physical().cast(pl.UInt32).to_numpy()


def names(typed: pl.DataFrame, optimizer: str, named: Collection[str] = ()) -> pl.Series:
    """Return the names of the jobs' folders: the optimizer, and the keys that differ or are in ``named``, as typed.

    >>> names(listed([["optimizer.lr=0.1", "seed=0"], ["optimizer.lr=0.2", "seed=0"]]), "sgd").to_list()
    ['sgd-lr=0.1', 'sgd-lr=0.2']
    """
    keys = {column: column.lstrip("+") for column in typed.columns}
    endings = [key.rpartition(".")[2] for key in keys.values()]
    parts = [] if "optimizer" in keys.values() else [pl.lit(optimizer)]
    for (column, key), ending in zip(keys.items(), endings, strict=True):
        differs = typed[column].n_unique() > 1 or key in named
        if key == "optimizer":
            parts.insert(len(parts) if differs else 0, pl.col(column))
        elif differs:
            shown = ending if endings.count(ending) == 1 else key
            parts.append(pl.lit(f"{shown}=") + pl.col(column))
    joined = typed.select(name=pl.concat_str(parts, separator="-", ignore_nulls=True)).to_series()
    return joined.map_elements(folder_name, pl.String)


def folder_name(name: str) -> str:
    """Make a name that any file system accepts; if it has to be changed or cut, it ends with a fingerprint.

    >>> folder_name("sgd-lr=0.1"), folder_name("sgd-path=../../x")
    ('sgd-lr=0.1', 'sgd-path=.._.._x-8451fa56')
    """
    plain = atomic.sanitized(name)
    if plain == name and plain[0] not in "._-":
        return plain
    digest = hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{atomic.sanitized(f'job{name}' if plain[:1] in '._-' else name)[:MAX_NAME]}-{digest}"


def overrides(rows: pl.DataFrame) -> pl.Series:
    """Return the overrides of planned jobs, in the order typed, as a column of lists."""
    typed = [pl.format("{}={}", pl.lit(key), pl.col(key)) for key in rows.columns if key not in COLUMNS]
    if not typed:
        return pl.Series("overrides", [[]] * len(rows), pl.List(pl.String))
    return rows.select(overrides=pl.concat_list(typed).list.drop_nulls()).to_series()


def group_hash(cfg: DictConfig) -> str:
    """Return the fingerprint of a config without its seed, which is equal for jobs that differ in their seeds alone."""
    seedless: Any = OmegaConf.to_container(OmegaConf.merge(cfg, {"seed": 0}), resolve=True)  # leaves may refer to seed
    return config_hash(seedless)


def job_fields(config: dict[str, Any], typed: Sequence[str], group: str, problem: str = "") -> dict[str, Any]:
    """Return the fields of `record.Job` for a job; an empty ``problem`` is computed by `problem_hash`."""
    optimizer, tensorboard = config["optimizer"], (config["logger"] or {}).get("tensorboard") or {}
    lr, name = optimizer.get("lr"), optimizer.get("_target_")
    fields = {"overrides": list(typed), "metric": config["metric"], "mode": config.get("mode", "min"), "group": group}
    fields |= {"tags": joined(config.get("tags")) or None}
    fields |= {"problem": problem or problem_hash(config), "optimizer": name and str(name).rpartition(".")[2]}
    return fields | {"lr": lr if type(lr) in (int, float) else None, "pictures": bool(tensorboard.get("pictures"))}


class Settings(Strict):
    """The content of sweep.json: the metric by which jobs are ranked, its mode, and the --config-dir."""

    metric: Text
    mode: Literal["min", "max"]
    config_dir: Text | None = None


def read_settings(folder: Path) -> Settings | None:
    """Read sweep.json; None if it cannot be read, since the jobs' records hold the metric and the mode too."""
    try:
        return Settings.model_validate_json((folder / SETTINGS).read_bytes())
    except (OSError, ValueError):
        return None


def read_plan(folder: Path) -> pl.DataFrame:
    """Read the plan of earlier commands; return no rows if there is none, raise UserError if it cannot be read."""
    if not (folder / PLAN).exists():
        return EMPTY
    try:
        plan = pl.read_parquet(folder / PLAN, memory_map=False).cast(pl.String)
        if "name" not in plan.columns or plan["name"].has_nulls():
            raise ValueError("some of its jobs have no name")
        plan = pl.concat([EMPTY, plan], how="diagonal")
        results.check_names(plan["name"])
    except (OSError, ValueError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{PLAN} cannot be read ({first_line(error)})") from error
    return plan


def plan_lock(folder: Path) -> AbstractContextManager[None]:
    """Hold the lock under which the commands of a sweep write its plan and its HPARAMS rows."""
    return results.locked(folder / LOCK)


def write_plan(folder: Path, jobs: pl.DataFrame, metric: str, mode: Literal["min", "max"]) -> None:
    """Add jobs to the sweep's plan, replacing those with the same names."""
    with plan_lock(folder):
        try:
            earlier = read_plan(folder)
        except UserError:  # damaged; the records of the earlier jobs remain
            earlier = jobs.clear()
        merged = pl.concat([earlier, jobs], how="diagonal").group_by("name", maintain_order=True).last()
        config_dir = absolute(layout.flag(sys.argv[1:], "--config-dir", "-cd"), layout.here())
        settings = Settings(metric=metric, mode=mode, config_dir=config_dir)
        atomic.replace(folder / SETTINGS, settings.model_dump_json(exclude_none=True).encode())
        results.write(folder / PLAN, merged)
