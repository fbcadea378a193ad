"""The table of results of stacks, also when it is damaged or written by two processes."""

import csv
import fcntl
import subprocess
import sys

import numpy as np
import polars as pl
import pytest
from runs import command
from test_leaderboard import cut_in_half, plan, printed, put, spoilt, stack, told
from test_sweep import sweep

from linear_lab import leaderboard as leaderboard_entry
from linear_lab.sweep import best_jobs, board, results
from linear_lab.sweep.inventory import read_jobs

STACKED = (
    "launch=stacked", "name=study", "seed=0,1", "trainer.max_epochs=3", "hydra.launcher.keep=0", "logger=none",
)  # fmt: skip


def of_another_version(path):
    pl.read_parquet(path).write_parquet(path, metadata={"linear_lab.results": "0"})


DAMAGED = [(cut_in_half, "cannot be read"), (of_another_version, "another version of linear_lab, or another")]


@pytest.mark.parametrize(("damage", "said"), DAMAGED)
def test_results_that_cannot_be_read_are_put_aside_if_asked(damage, said, tmp_path):
    folder = tmp_path / "sweeps" / "study"
    assert sweep(tmp_path, *STACKED)[0] == 0
    before = results.read_results(folder)
    assert before["status"].to_list() == ["completed"] * 2
    damage(folder / "results.parquet")
    damaged = (folder / "results.parquet").read_bytes()
    jobs, (note,) = read_jobs(folder)
    assert jobs.select("name", "status").rows() == [("sgd-seed=0", "waiting"), ("sgd-seed=1", "waiting")]
    assert f"{folder}/results.parquet: {said}" in note
    code, out, _ = command(leaderboard_entry, f"sweep={folder}")
    assert (code, note in out, note in (folder / "leaderboard.md").read_text()) == (0, True, True)
    code, told_then = sweep(tmp_path, *STACKED)
    assert code == 1
    assert told_then.startswith(f"error: {folder}/results.parquet: {said}")
    assert "train the sweep with name=study and overwrite=true, which renames the file" in told_then
    assert (folder / "results.parquet").read_bytes() == damaged  # the refused command has not changed the file
    assert sweep(tmp_path, *STACKED, "overwrite=true")[0] == 0
    assert (folder / "results.parquet.unreadable").read_bytes() == damaged
    again = results.read_results(folder)
    assert again.drop("seconds").equals(before.drop("seconds"))
    assert board.read(folder).notes == []


def test_a_column_that_cannot_be_read_is_noted_and_costs_no_new_row(tmp_path):
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"]})
    stack(tmp_path, {"a": 1.0})
    for name in (results.RESULTS, results.HISTORY):
        path = tmp_path / name
        pl.DataFrame({"name": ["a"] * 100, "other": ["x"] * 100}).write_parquet(path, metadata=results.VERSION)
        spoilt(path)
        results.add(tmp_path, pl.DataFrame({"name": ["b"]}), name)  # as a stack does after hours of training
        assert pl.read_parquet(path)["name"].to_list() == ["b"]
        assert (tmp_path / f"{name}.unreadable").exists()


@pytest.mark.parametrize(
    "column",
    [
        pl.lit(3).alias("job"), pl.lit("x").alias("steps"), pl.lit("x").alias("metrics"), pl.lit(1).alias("status"),
        pl.struct(lr=pl.lit("x")).alias("job"), pl.struct(overrides=pl.lit("x")).alias("job"),
        pl.struct(pl.lit("x").alias("val/loss")).alias("metrics"),
    ],
)  # fmt: skip
def test_a_column_of_another_type_is_refused(column, tmp_path):
    stack(tmp_path, {"a": 1.0})
    path = tmp_path / results.RESULTS
    pl.read_parquet(path).with_columns(column).write_parquet(path, metadata=results.VERSION)
    _, (note,) = read_jobs(tmp_path)
    assert f"{path}: it is not a table of results; train the sweep" in note


def test_a_row_without_what_newer_ones_have_is_listed(tmp_path):
    failed = {"name": ["a"], "status": ["failed"], "error": ["no data"], "config_hash": ["h"], "seconds": [0.0]}
    results.add(tmp_path, pl.DataFrame(failed).with_columns(job=pl.struct(overrides=pl.lit(["seed=1"]), group=None)))
    found = board.write(tmp_path)
    assert told(found, "name", "status", "error", "trained", "typed") == [("a", "failed", "no data", False, ["seed=1"])]
    stack(tmp_path, {"b": 1.0})
    assert told(board.read(tmp_path), "name", "status", "value") == [("a", "failed", None), ("b", "completed", 1.0)]
    assert (tmp_path / "leaderboard.csv").read_text().splitlines()[1].endswith(",failed,0.0,no data")


def python(script, *arguments):
    """Start a script in a new process, since a process that has used polars must not fork."""
    return subprocess.Popen([sys.executable, "-c", script, *map(str, arguments)], stderr=subprocess.PIPE, text=True)


ADDING = """
import sys
from pathlib import Path
import polars as pl
from linear_lab.sweep import results
folder, which = Path(sys.argv[1]), sys.argv[2]
(folder / which).touch()
while not all((folder / other).exists() for other in "ab"):
    pass
for k in range(20):
    results.add(folder, pl.DataFrame({"name": [f"{which}-{k}", f"{which}-last"], "status": "completed", "k": [k, k]}))
"""


def test_two_processes_lose_no_row(tmp_path):
    processes = [python(ADDING, tmp_path, which) for which in "ab"]
    assert [(process.communicate(timeout=60)[1], process.returncode) for process in processes] == [("", 0), ("", 0)]
    found = results.read_results(tmp_path)
    wanted = {f"{which}-{k}" for which in "ab" for k in range(20)} | {"a-last", "b-last"}
    assert (set(found["name"]), len(found)) == (wanted, 42)
    assert found.filter(pl.col("name").str.ends_with("last"))["k"].to_list() == [19, 19]
    assert not list(tmp_path.glob("*.part"))
    turns = found.filter(~pl.col("name").str.ends_with("last"))["name"].str.head(1).to_list()
    assert turns not in (sorted(turns), sorted(turns, reverse=True))  # both processes wrote at the same time


def test_what_is_forgotten_is_gone_and_nothing_else(tmp_path):
    stack(tmp_path, {"a": 1.0, "b": 2.0, "c": 3.0})
    before = results.read_results(tmp_path)
    stamp = (tmp_path / "results.parquet").stat().st_mtime_ns
    results.remove_rows(tmp_path, pl.Series("name", [], pl.String))
    results.remove_rows(tmp_path, pl.Series("name", ["d"]))
    assert (tmp_path / "results.parquet").stat().st_mtime_ns == stamp  # the file was not written again
    results.remove_rows(tmp_path, pl.Series("name", ["d", "b"]))
    assert results.read_results(tmp_path).equals(before.filter(name="a").vstack(before.filter(name="c")))
    results.remove_rows(tmp_path, pl.Series("name", ["a", "c"]))
    assert results.read_results(tmp_path).is_empty()
    assert board.read(tmp_path).jobs.is_empty()
    stack(tmp_path, {"e": 1.0})
    assert told(board.read(tmp_path), "name", "value") == [("e", 1.0)]
    results.remove_rows(tmp_path / "e", pl.Series("name", ["a"]))  # a sweep without results


def test_a_job_has_ended_with_its_config_only(tmp_path):
    assert not results.has_ended(tmp_path, "a", "hash of a")
    stack(tmp_path, {"a": 1.0})
    stack(tmp_path, {"b": None}, status="diverged", error="it grew")
    stack(tmp_path, {"c": None}, status="failed")
    asked = [("a", "hash of a"), ("a", "hash of b"), ("b", "hash of b"), ("c", "hash of c"), ("d", "hash of a")]
    assert [results.has_ended(tmp_path, *job) for job in asked] == [True, False, True, False, False]


FULL = """
import resource, signal, sys
from pathlib import Path
import polars as pl
from linear_lab import UserError
from linear_lab.sweep import results
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
try:
    results.add(Path(sys.argv[1]), pl.DataFrame({"name": ["b"]}))
except UserError as error:
    raise SystemExit(str(error))
"""


def test_a_full_disk_is_told_and_leaves_the_rows_there_were(tmp_path):
    stack(tmp_path, {"a": 1.0})
    before = (tmp_path / "results.parquet").read_bytes()
    process = python(FULL, tmp_path)
    said = process.communicate(timeout=60)[1]
    assert (process.returncode, said.count("\n")) == (1, 1), said
    assert said.startswith(f"cannot write {tmp_path}/results.parquet: File too large")
    assert (tmp_path / "results.parquet").read_bytes() == before
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    ("row", "record", "counts", "folder"),
    [
        ("completed", "completed", "row", True), ("completed", "diverged", "row", True),
        ("completed", "pruned", "row", True), ("diverged", "completed", "row", True),
        ("failed", "completed", "record", True), ("failed", "failed", "record", True),
        ("completed", "running", "row", False), ("completed", "interrupted", "row", False),
        ("diverged", "failed", "row", False), ("completed", "unreadable", "row", False),
        ("failed", "running", "record", True),
    ],
)  # fmt: skip
def test_a_job_in_a_stack_and_alone_is_ranked_by_its_stack(row, record, counts, folder, tmp_path):
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"]})
    stack(tmp_path, {"a": 1.0}, status=row, steps=10)
    put(tmp_path, "a", 2.0, record, overrides=["seed=1"], steps=20, config_hash="hash of a")
    if record == "unreadable":
        (tmp_path / "a" / "result.json").write_text("{")
    with (tmp_path / "a" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        found = board.read(tmp_path)
    wanted = ("a", row, 10, folder) if counts == "row" else ("a", record, 20, folder)
    assert told(found, "name", "status", "steps", "folder") == [wanted, ("b", "waiting", None, False)]
    value = {"row": 1.0, "record": 2.0}[counts] if "completed" in (wanted[1],) else None
    assert (found.best and found.best.value) == value
    put(tmp_path, "a", 3.0, overrides=["seed=1"], steps=30, config_hash="another")  # resumed with another config
    ended = (10, 1.0 if row == "completed" else None, False)
    assert told(board.read(tmp_path), "steps", "value", "folder")[0] == ((30, 3.0, True) if row == "failed" else ended)


def test_jobs_that_learn_otherwise_alone_are_told(tmp_path):
    weights = {"alike": 1.0 + 1e-7, "other": 1.01, "lost": None, "failed": 2.0, "both_lost": 2.0, "large": 2.0}
    stack(tmp_path, dict.fromkeys([*weights, "left_out"], 1.0))
    stack(tmp_path, {"both_lost": 1.0}, status="diverged")
    stack(tmp_path, {"large": 1.0}, parameters={"weight": None, "bias": None})  # as of a large model
    statuses = {"lost": "diverged", "both_lost": "diverged", "failed": "failed"}
    for name, weight in weights.items():
        put(tmp_path, name, 1.0, statuses.get(name, "completed"), parameters={"weight": [[weight]], "bias": [0.0]})
    names = pl.Series("name", [*weights, "left_out"])

    def told_by(precision):
        return [*best_jobs.disagreements(tmp_path, names, lambda _: {"trainer": {"precision": precision}})]

    other, lost = told_by("32-true")
    assert other.startswith("differs  other: ")
    assert other.endswith("by 0.01 of their norm, more than 1e-05")
    assert lost.startswith("differs  lost: ")
    assert [line.split(":")[0] for line in told_by("64-true")] == ["differs  alike", "differs  other", "differs  lost"]
    assert [*best_jobs.disagreements(tmp_path / "large", names, None)] == []  # a sweep without results


def test_twenty_thousand_jobs_are_ranked_and_listed(tmp_path):
    count, random = 20_000, np.random.default_rng(0)
    values = random.permutation(count // 2).repeat(2).astype(float) / 7  # each value appears twice
    random.shuffle(values)
    lost = random.random(count) < 0.1
    statuses = np.where(lost, "diverged", "completed")
    names = [f"sgd-lr={k}" for k in range(count)]
    plan(tmp_path, {name: [f"optimizer.lr={k}"] for k, name in enumerate(names)})
    of_job = {"metric": "val/loss", "mode": "min", "group": None, "problem": "p", "optimizer": "SGD", "pictures": True}
    job = pl.struct(
        *(pl.lit(value, pl.Boolean if value is True else pl.String).alias(key) for key, value in of_job.items()),
        overrides=pl.concat_list(pl.lit("seed=1")),
        lr=pl.lit(0.1),
    )
    frame = pl.DataFrame({"name": names, "status": statuses, "value": values, "steps": 3, "excess_loss": values})
    frame = frame.with_columns(config_hash="name")
    frame = frame.with_columns(metrics=pl.struct(pl.col("value").alias("val/loss")), job=job, error=pl.lit(None))
    results.add(tmp_path, frame.drop("value").sample(fraction=1, shuffle=True, seed=1))  # stacks end in any order
    found = board.write(tmp_path)
    with (tmp_path / "leaderboard.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    kept = np.flatnonzero(~lost)
    order = kept[np.argsort(values[kept], kind="stable")]  # equal values are in the order of the plan
    assert [row["job"] for row in table] == [names[k] for k in [*order, *np.flatnonzero(lost)]]
    ranks = 1 + np.searchsorted(np.sort(values[kept]), values[order])
    assert [row["rank"] for row in table] == [*map(str, ranks), *[""] * lost.sum()]
    assert [float(row["val/loss"]) for row in table[: len(kept)]] == values[order].tolist()
    assert found.best.name == names[order[0]]
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.count("\n| ") == 2 + 1000
    assert "19000 more jobs are not shown." in text
    assert text.startswith("20000 jobs: ")
    assert found.counts == {"completed": len(kept), "diverged": lost.sum()}
    shown = printed(found)
    assert len([line for line in shown.splitlines() if " completed " in line]) == 20
    assert "... 19980 more in " in shown
