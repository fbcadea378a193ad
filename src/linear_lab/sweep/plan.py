"""What a sweep is to do: a table with a row for each job and a column for each key that was typed."""

import fcntl
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.fingerprints import config_hash, decides, leaves, poses, problem_hash, total
from linear_lab.sweep import results
from linear_lab.sweep.composer import Composer, Places
from linear_lab.sweep.mistakes import mistake
from linear_lab.sweep.naming import names
from linear_lab.terminal import layout

if TYPE_CHECKING:
    import numpy as np
    import polars as pl

PLAN, SETTINGS = "plan.parquet", "sweep.json"  # in the sweep's folder: its jobs; the metric, and how it ranks
LOCK = f".{SETTINGS}.lock"
SHOWN = 8  # differences that a message names
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
    whole = [key for key in keys if not typed[key].has_nulls()]
    columns = [key for key in whole if all(composer.is_column(key, text) for text in typed[key].unique())]
    yield from _shapes(typed, [key for key in keys if key not in columns], columns, composer)


def _shapes(typed: "pl.DataFrame", shaping: list[str], columns: list[str], composer: Composer) -> Iterator[Part]:
    parts = typed.partition_by(shaping, maintain_order=True) if shaping else [typed]
    for rows in parts:
        first = rows.row(0, named=True)
        fixed = [f"{key}={first[key]}" for key in shaping if first[key] is not None]
        present = [key for key in columns if first[key] is not None]
        try:
            places = composer.places(fixed, present)
            layout.raise_if_interrupted()
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


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have commands of one name write what they plan, and rows of HPARAMS, one after the other."""
    with (folder / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def write_plan(folder: Path, jobs: "pl.DataFrame", metric: str, mode: str) -> None:
    """Add jobs to what the sweep's folder says is planned, before any is trained."""
    import polars as pl

    with alone(folder):
        try:
            earlier = read_plan(folder)
        except UserError:  # damaged: the jobs say themselves what they are
            earlier = jobs.clear()
        order = pl.concat([earlier.select("name"), jobs.select("name")]).unique(maintain_order=True)
        others = earlier.join(jobs.select("name"), on="name", how="anti")
        merged = pl.concat([others, jobs], how="diagonal")
        merged = order.join(merged, on="name", how="left", maintain_order="left")
        atomic.replace(folder / SETTINGS, json.dumps({"metric": metric, "mode": mode}).encode())
        results.write(folder / PLAN, merged)
