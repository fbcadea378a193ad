"""The leaderboard of a sweep, from plans, records and results that the tests write."""

import csv
import fcntl
import io
import json
import math
import os
import re
import shlex
import shutil
import statistics
import subprocess
import sys
import threading
import time

import numpy as np
import polars as pl
import pytest
from runs import command, events, train

from linear_lab import UserError
from linear_lab import leaderboard as entry
from linear_lab.sweep import board, inventory, page, results
from linear_lab.sweep.inventory import KEYS
from linear_lab.sweep.plan import listed, write_plan
from linear_lab.terminal import layout
from linear_lab.text import printable
from linear_lab.tracking.tensorboard import RunLogger

OWN = {"metric": "val/loss", "mode": "min"}


def put(folder, name, value=1.0, status="completed", *, overrides=(), group=None, own=OWN, **fields):
    """Write a job's record."""
    (folder / name).mkdir(exist_ok=True)
    job = {"overrides": list(overrides), "group": group, **own}
    record = {"status": status, "error": None, "steps": 7, "seconds": 0.25, "excess_loss": value, "job": job}
    record |= {"metrics": {own["metric"]: value, "test/loss": 3 * value, "val/accuracy": 1 - value / 10}} | fields
    (folder / name / "result.json").write_text(json.dumps(record))


def plan(folder, jobs, own=OWN):
    """Plan jobs, given as overrides by name; name= is not part of them."""
    frame = pl.DataFrame({"name": [*jobs], "config_hash": [f"hash of {name}" for name in jobs]})
    frame = frame.with_columns(group=pl.lit(None, pl.String), problem=pl.lit("of all"))
    typed = listed([[item for item in overrides if not item.startswith("name=")] for overrides in jobs.values()])
    write_plan(folder, frame.hstack(typed.get_columns()), own["metric"], own["mode"])


def stack(folder, values, *, status="completed", own=OWN, overrides=None, **fields):
    """Write results of jobs that were trained in a stack, given as values by name."""
    count = len(values)
    job = {**own, "optimizer": "SGD", "lr": 0.1, "pictures": True, "problem": "of all"}
    results.add(folder, pl.DataFrame([
        {
            "name": name, "status": status, "error": None, "config_hash": f"hash of {name}", "seed": 0, "steps": 7,
            "seconds": 0.25, "excess_loss": value, "metrics": {own["metric"]: value, "test/loss": value and 3 * value},
            "parameters": {"weight": [[value]], "bias": [0.0]},
            "job": job | {"overrides": (overrides or {}).get(name, []), "group": f"group of {name}"},
        } | fields
        for name, value in values.items()
    ], infer_schema_length=count))  # fmt: skip


def told(found, *columns):
    """Return some columns of a leaderboard's jobs, as tuples."""
    return found.jobs.select(columns).rows()


def rows(folder, name="leaderboard.csv"):
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def printed(found, top=20, width=100, *, is_terminal=False):
    file = io.StringIO()
    screen = layout.Screen(file=file, width=width, force_terminal=is_terminal, markup=False, highlight=False)
    board.show(screen, found, top)
    layout.show_commands(screen, board.commands(found))
    return re.sub(r"\x1b\[[\d;]*m", "", file.getvalue())


def test_best_first_and_the_others_as_planned(tmp_path):
    typed = {f"lr={lr}": ["optimizer=sgd", f"optimizer.lr={lr}", "name=study"] for lr in (1, 2, 3, 4, 5, 6, 7, 8)}
    plan(tmp_path, typed)
    for name, value, status in [
        ("lr=2", 0.5, "completed"), ("lr=3", 0.1 + 0.2, "completed"), ("lr=5", 0.5, "completed"),
        ("lr=4", 0.01, "diverged"), ("lr=6", math.nan, "completed"), ("lr=7", 0.02, "failed"), ("lr=8", 9, "completed"),
    ]:  # fmt: skip
        put(tmp_path, name, value, status, overrides=typed[name], error=status if status == "failed" else None)
    found = board.write(tmp_path)
    table = rows(tmp_path)
    assert list(table[0]) == [
        "rank", "job", "optimizer.lr", "val/loss", "excess_loss", "steps", "status", "seconds", "error"
    ]  # fmt: skip
    assert [list(row.values()) for row in table] == [
        ["1", "lr=3", "3", "0.30000000000000004", "0.30000000000000004", "7", "completed", "0.25", ""],
        ["2", "lr=2", "2", "0.5", "0.5", "7", "completed", "0.25", ""],
        ["2", "lr=5", "5", "0.5", "0.5", "7", "completed", "0.25", ""],  # equal values share a rank
        ["4", "lr=8", "8", "9.0", "9.0", "7", "completed", "0.25", ""],
        ["", "lr=1", "1", "", "", "", "waiting", "", ""],
        ["", "lr=4", "4", "", "", "7", "diverged", "0.25", ""],
        ["", "lr=6", "6", "", "", "7", "completed", "0.25", ""],
        ["", "lr=7", "7", "", "", "7", "failed", "0.25", "failed"],
    ]
    assert (found.best.name, found.best.value, found.best.folder) == ("lr=3", 0.1 + 0.2, tmp_path / "lr=3")
    assert found.counts == {"waiting": 1, "completed": 5, "diverged": 1, "failed": 1}
    assert [line.split() for line in printed(found).splitlines()][:3] == [
        ["rank", "lr", "val/loss", "excess", "loss", "status", "seconds"],
        ["1", "3", "0.3", "0.3", "completed", "0.2"],
        ["2", "2", "0.5", "0.5", "completed", "0.2"],
    ]
    text = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert text[0] == "8 jobs: 1 waiting, 5 completed, 1 diverged, 1 failed; a lower val/loss is better"
    assert text[4] == "| 1 | 3 | 0.3 | 0.3 | 7 | completed | 0.2 | lr=3 |"
    assert text[8] == "| - | 1 | - | - | - | waiting | - | lr=1 |"


def test_higher_is_better_where_the_mode_says_so(tmp_path):
    own = {"metric": "val/accuracy", "mode": "max"}
    for name, value in [("a", 0.5), ("b", 0.9), ("c", 0.7)]:
        put(tmp_path, name, value, metrics={"val/accuracy": value}, overrides=[f"seed={name}"], group="g", own=own)
    found = board.write(tmp_path)
    assert [row["job"] for row in rows(tmp_path)] == ["b", "c", "a"]
    assert (found.metric, found.mode) == ("val/accuracy", "max")
    (seeds,) = rows(tmp_path, "leaderboard_seeds.csv")
    assert (seeds["best"], seeds["worst"]) == ("0.9", "0.5")
    assert "a higher val/accuracy is better" in (tmp_path / "leaderboard.md").read_text()


def test_a_job_runs_only_as_long_as_its_folder_is_locked(tmp_path):
    plan(tmp_path, {"a": [], "b": [], "c": []})
    put(tmp_path, "a", status="running")
    put(tmp_path, "b", status="running")
    with (tmp_path / "a" / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert told(board.read(tmp_path), "status") == [("running",), ("interrupted",), ("waiting",)]
    assert board.read(tmp_path).counts == {"interrupted": 2, "waiting": 1}


@pytest.mark.parametrize(
    "content",
    [
        b'{"status": "comp', b"", b"\xff\xfe", b"[1]", b"{}", b'{"status": 3}', b"[" * 100_000,
        b'{"status": "completed", "metrics": [1]}', b'{"status": "completed", "job": {"overrides": "seed=1"}}',
    ],
)  # fmt: skip
def test_a_record_that_cannot_be_read_is_a_line_of_the_table(content, tmp_path):
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"]})
    put(tmp_path, "b", overrides=["seed=2"])
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "result.json").write_bytes(content)
    found = board.write(tmp_path)
    assert told(found, "name", "status", f"{KEYS}seed") == [("a", "unreadable", "1"), ("b", "completed", "2")]
    assert rows(tmp_path)[1]["error"].startswith("result.json cannot be read: ")
    assert found.best.name == "b"


@pytest.mark.parametrize("value", ["0.1", None, True, [1], math.inf, pytest.param(10**400, id="huge")])
def test_what_is_no_finite_number_is_not_ranked(value, tmp_path):
    put(tmp_path, "a", metrics={"val/loss": value}, excess_loss=value, seconds=value, steps=None)
    found = board.write(tmp_path)
    assert (found.best, rows(tmp_path)[0]["val/loss"], rows(tmp_path)[0]["excess_loss"]) == (None, "", "")
    assert "no job was completed" in (tmp_path / "leaderboard.md").read_text()


def cut_in_half(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def spoilt(path):
    """Overwrite the data of a Parquet file, but not its footer."""
    content = path.read_bytes()
    path.write_bytes(content[:4] + b"\xff" * 60 + content[64:])


DAMAGED = [
    cut_in_half,
    spoilt,
    lambda path: path.write_bytes(b""),
    lambda path: path.write_bytes(b"PAR1" * 4),
    lambda path: path.write_text('{"jobs": {"a": ["seed=1"]}}'),
    lambda path: pl.DataFrame({"other": [1]}).write_parquet(path),
    lambda path: pl.DataFrame({"name": [["a"]]}).write_parquet(path),
    lambda path: (path.unlink(), path.mkdir()),
]


@pytest.mark.parametrize("damage", [None, *DAMAGED])
def test_a_sweep_without_a_readable_plan(damage, tmp_path):
    if damage:
        plan(tmp_path, {"2-sgd": ["seed=1"], "never began": ["seed=2"]})
        (tmp_path / "sweep.json").unlink()
        damage(tmp_path / "plan.parquet")
    for name, value in [("10-sgd", 3.0), ("2-sgd", 2.0)]:
        put(tmp_path, name, value, overrides=[f"optimizer.lr={value}"])
    for other in ("_sweep", ".hidden", "empty"):
        (tmp_path / other).mkdir()
    put(tmp_path, "_least_squares", 0.0)
    (tmp_path / "file").touch()
    found = board.write(tmp_path)
    assert told(found, "name", f"{KEYS}optimizer.lr") == [("2-sgd", "2.0"), ("10-sgd", "3.0")]
    assert found.keys == ["optimizer.lr"]
    assert found.best.name == "2-sgd"
    assert len(found.notes) == bool(damage)
    if damage:
        assert "plan.parquet cannot be read" in printed(found)
        assert "so jobs that never started are not listed" in printed(found)
        assert "plan.parquet cannot be read" in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.parametrize("content", ["{", "[]", '{"metric": 3, "mode": ["min"]}', "[" * 100_000, "\xff"])
def test_a_sweep_whose_metric_cannot_be_read_ranks_by_that_of_its_jobs(content, tmp_path):
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"]})
    (tmp_path / "sweep.json").write_bytes(content.encode("latin-1"))
    own = {"metric": "val/accuracy", "mode": "max"}
    put(tmp_path, "a", metrics={"val/accuracy": 0.5}, own=own)
    put(tmp_path, "b", metrics={"val/accuracy": 0.75}, own=own)
    found = board.read(tmp_path)
    assert (found.metric, found.mode, found.best.name, len(found.jobs)) == ("val/accuracy", "max", "b", 2)


def test_an_older_sweep_does_not_tell_what_was_typed(tmp_path):
    (tmp_path / "multirun.yaml").touch()
    put(tmp_path, "0-sgd", job={})
    found = board.read(tmp_path)
    assert (board.is_sweep(tmp_path), found.best.command, found.differing) == (True, None, [])
    assert f"train again  with the overrides in {tmp_path}/0-sgd/.hydra" in printed(found)
    put(tmp_path, "new", overrides=["seed=1"])
    assert board.read(tmp_path).differing == []  # unknown overrides do not differ
    assert "0-sgd" in printed(found).splitlines()[1]  # shown, since no other column distinguishes the jobs


def test_what_differs_in_the_order_typed(tmp_path):
    jobs = {
        "a": ["seed=1", "optimizer=sgd", "optimizer.momentum=0.9", "++momentum=1", "model.bias=true", "launch=local"],
        "b": [
            "seed=1",
            "optimizer=adam",
            "++momentum=2",
            "model.bias=true",
            "launch=joblib",
            "hydra.launcher.n_jobs=2",
        ],
        "c": ["seed=1", "optimizer=adam", "++momentum=2", "model.bias=true", "name=x", "sweep=lr", "overwrite=true"],
    }
    plan(tmp_path, jobs)
    found = board.write(tmp_path)
    assert found.differing == ["optimizer", "optimizer.momentum", "momentum"]
    assert list(rows(tmp_path)[0])[2:5] == found.differing
    assert [list(row.values())[2:5] for row in rows(tmp_path)] == [
        ["sgd", "0.9", "1"],
        ["adam", "", "2"],
        ["adam", "", "2"],
    ]
    text = (tmp_path / "leaderboard.md").read_text().splitlines()
    assert text[2].startswith("| rank | optimizer | optimizer.momentum | momentum | val/loss |")
    assert text[5].startswith("| - | adam | - | 2 | - |")


def test_the_means_over_seeds(tmp_path):
    values = {("a", 1): 3.0, ("a", 2): 1.0, ("a", 3): 8.0, ("b", 1): 0.5, ("b", 2): 0.25, ("c", 1): 2.0, ("d", 1): 0.0}
    jobs = {f"{lr}-{seed}": [f"optimizer.lr={lr}", f"seed={seed}"] for lr, seed in values}
    plan(tmp_path, jobs | {"b-3": ["optimizer.lr=b", "seed=3"], "e-1": ["optimizer.lr=e", "seed=1"]})
    for (lr, seed), value in values.items():
        name, status = f"{lr}-{seed}", "failed" if lr == "d" else "completed"
        put(tmp_path, name, value, status, overrides=jobs[name], group=f"group {lr}", seed=seed)
    put(tmp_path, "b-3", 0, "diverged", overrides=["optimizer.lr=b", "seed=3"], group="group b", seed=3)
    put(tmp_path, "b-1 again", 0.5, overrides=["optimizer.lr=0b", "seed=1"], group="group b", seed=1)  # the same job
    found = board.write(tmp_path)
    table = rows(tmp_path, "leaderboard_seeds.csv")
    assert list(table[0]) == [
        "rank", "optimizer.lr", "n", "diverged_or_failed", "mean", "standard_deviation", "best", "worst"
    ]  # fmt: skip
    assert [list(row.values())[:5] + list(row.values())[6:] for row in table] == [
        ["1", "c", "1", "0", "2.0", "2.0", "2.0"],
        ["2", "a", "3", "0", "4.0", "1.0", "8.0"],  # (3 + 1 + 8) / 3
        ["3", "b", "2", "1", "0.375", "0.25", "0.5"],  # after the groups without a lost job
        ["", "d", "0", "1", "", "", ""],
    ]
    deviations = [row["standard_deviation"] for row in table]
    assert (deviations[0], deviations[3]) == ("", "")
    assert float(deviations[1]) == pytest.approx(math.sqrt(13))  # ((3 - 4)^2 + (1 - 4)^2 + (8 - 4)^2) / 2
    assert float(deviations[2]) == pytest.approx(math.sqrt(0.03125))
    shown = printed(found)
    assert "rank  lr  n  lost  mean   standard deviation  best  worst" in shown
    assert [line.split() for line in shown.splitlines() if line.startswith("2     a")] == [
        ["2", "a", "3", "0", "4", "3.60555", "1", "8"]
    ]
    assert "| 2 | a | 3 | 0 | 4 | 3.60555 | 1 | 8 |" in (tmp_path / "leaderboard.md").read_text()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_summary_of_a_group_is_numpys(mode, tmp_path):
    values = np.random.default_rng(0).normal(5, 2, 40).tolist()
    for seed, value in enumerate([*values[:20], None, *values[20:]]):
        fields = {"metrics": {"val/loss": value}, "group": "g", "seed": seed, "excess_loss": None}
        put(tmp_path, f"job-{seed}", **fields, own={"metric": "val/loss", "mode": mode})
    (group,) = board.read(tmp_path).groups.to_dicts()
    mean, deviation = group["mean"], group["standard_deviation"]
    assert (mean, deviation) == pytest.approx((np.mean(values), np.std(values, ddof=1)), rel=1e-14)
    assert (mean, deviation) == pytest.approx((statistics.mean(values), statistics.stdev(values)), rel=1e-14)
    ends = (min(values), max(values))
    assert (group["best"], group["worst"]) == (ends if mode == "min" else ends[::-1])
    assert (group["n"], group["lost"], group["rank"]) == (40, 0, 1)


def test_a_table_over_seeds_only_where_there_are_some(tmp_path):
    for name in ("a", "b"):
        put(tmp_path, name, group=name, seed=1)
    (tmp_path / "leaderboard_seeds.csv").write_text("of an earlier sweep")
    found = board.write(tmp_path)
    assert found.groups.is_empty()
    assert not (tmp_path / "leaderboard_seeds.csv").exists()
    assert "over seeds" not in printed(found) + board.markdown(found, board.MAX_ROWS)
    put(tmp_path, "c", group="b", seed=0)
    assert board.write(tmp_path).groups.select("group", "n", "len").rows() == [("a", 1, 1), ("b", 2, 2)]
    assert "val/loss over seeds" in printed(board.read(tmp_path))


def test_only_what_has_changed_is_read_again(tmp_path, monkeypatch):
    for name in "abc":
        put(tmp_path, name, 1.0)
    board.read(tmp_path)
    parsed, read = [], inventory.record.read
    monkeypatch.setattr(inventory.record, "read", lambda path: parsed.append(path) or read(path))
    assert board.read(tmp_path).best.name == "a"
    assert parsed == []
    before = (tmp_path / "c" / "result.json").stat()
    text = (tmp_path / "c" / "result.json").read_text().replace("1.0", "0.0")
    (tmp_path / "new").write_text(text)  # it has the same length and the same time of modification
    os.utime(tmp_path / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (tmp_path / "new").replace(tmp_path / "c" / "result.json")
    assert board.read(tmp_path).best.name == "c"
    assert parsed == [tmp_path / "c" / "result.json"]
    (tmp_path / "c" / "result.json").unlink()
    assert told(board.read(tmp_path), "name") == [("a",), ("b",)]


def test_plan_and_results_are_read_again_only_when_they_have_changed(tmp_path, monkeypatch):
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"]})
    stack(tmp_path, {"a": 1.0})
    first, again = [], []
    read_plan, read_stacked = inventory.read_plan, inventory.read_stacked
    monkeypatch.setattr(inventory, "read_plan", lambda folder: first.append(folder) or read_plan(folder))
    monkeypatch.setattr(inventory, "read_stacked", lambda *given: again.append(given) or read_stacked(*given))
    found = board.read(tmp_path)
    assert board.read(tmp_path) is found  # the ranking is reused
    assert board.read(tmp_path, mode="max") is not found
    assert (len(first), len(again)) == (1, 1)
    stack(tmp_path, {"b": 0.5})
    assert board.read(tmp_path).best.name == "b"
    plan(tmp_path, {"c": ["seed=3"]})
    assert told(board.read(tmp_path), "name", "status") == [("a", "completed"), ("b", "completed"), ("c", "waiting")]
    assert (len(first), len(again)) == (3, 3)


def test_lists_of_parameters_are_not_kept(tmp_path):
    put(tmp_path, "a", parameters={"weight": [[0.0] * 1000]}, best={"parameters": {"weight": [[0.0] * 1000]}})
    stack(tmp_path, {"b": 1.0})
    assert not {"parameters", "best", "initial"} & set(board.read(tmp_path).jobs.columns)
    assert not {"parameters", "best", "initial"} & set(inventory.read_record(tmp_path / "a" / "result.json"))


def test_another_metric(tmp_path):
    for name, value, accuracy in [("a", 1.0, 0.3), ("b", 2.0, 0.6)]:
        put(tmp_path, name, value, metrics={"val/loss": value, "test/loss": -value, "val/accuracy": accuracy})
    assert [board.read(tmp_path, *chosen).best.name for chosen in [
        (), ("test/loss",), ("test/loss", "max"), ("val/accuracy",), ("val/accuracy", "min"), (None, "max"),
    ]] == ["a", "b", "a", "b", "a", "b"]  # fmt: skip
    with pytest.raises(UserError, match=r"metric=x: .* has measured it; choose one of val/loss, test/loss, val/acc"):
        board.read(tmp_path, "x")
    with pytest.raises(UserError, match="mode=up: choose min or max"):
        board.read(tmp_path, mode="up")
    plan(tmp_path, {"c": []}, {"metric": "test/loss", "mode": "max"})
    assert board.read(tmp_path).best.name == "a"  # the sweep's settings come before those of the jobs
    stack(tmp_path, {"d": 0.25})
    assert [board.read(tmp_path, *chosen).best.name for chosen in [(), ("val/loss",)]] == ["d", "d"]


def test_train_stands_in_where_there_is_no_val_part(tmp_path):
    plan(tmp_path, {"a": [], "b": []})
    assert board.read(tmp_path).metric == "val/loss"
    put(tmp_path, "a", metrics={"train/loss": 2.0}, overrides=[])
    put(tmp_path, "b", metrics={"train/loss": 1.0}, overrides=[])
    found = board.read(tmp_path)
    assert (found.metric, found.best.name) == ("train/loss", "b")


@pytest.mark.parametrize(
    ("key", "metric", "said"),
    [
        ("data.seed", "val/loss", True), ("loss", "val/loss", True), ("loss", "val/accuracy", False),
        ("data.batch_size", "val/loss", False), ("optimizer", "val/loss", False),
    ],
)  # fmt: skip
def test_losses_that_do_not_compare_are_told(key, metric, said, tmp_path):
    for value in "ab":
        put(tmp_path, value, overrides=[f"{key}={value}"], own={"metric": metric, "mode": "min"})
    found = board.read(tmp_path)
    assert (f"jobs differ in {key}, so their losses are not" in printed(found)) == said


HOSTILE = ["data.path='../../x y=é|`.csv'", "data.x=['a b','c']", '+note=$(rm -rf "$HOME")\n\x1b[31m', "seed=1"]


def test_the_command_is_what_was_typed_less_what_steers(tmp_path):
    put(tmp_path, "a", overrides=["name=study", *HOSTILE[:2], "launch=joblib", *HOSTILE[2:], "fail_fast=true"])
    put(tmp_path, "b", 2.0, overrides=["seed=2"])
    found = board.write(tmp_path)
    python, *rest = shlex.split(found.best.command)
    assert (python, rest) == (layout.python(), ["-m", "linear_lab.train", *HOSTILE])
    text = (tmp_path / "leaderboard.md").read_text()
    assert text.endswith(f"\n```sh\n{printable(found.best.command)}\n```\n")
    assert text.count("\n| ") == 4  # line breaks and bars in a value do not end a row
    assert f"train again  {layout.python()} -m linear_lab.train" in printed(found, width=40, is_terminal=True)
    table = printed(found).split("train again")[0]
    assert "?[31m" in table
    assert "?[31m" in text.split("```")[0]
    assert rows(tmp_path)[0]["note"] == '$(rm -rf "$HOME")\n\x1b[31m'


def test_a_stacks_winner_is_trained_again_as_it_was_typed(tmp_path):
    plan(tmp_path, {"a": ["+note=1", "optimizer=sgd"], "b": [*HOSTILE, "++optimizer.nesterov=true"]})
    stack(tmp_path, {"a": 2.0, "b": 1.0, "c": 3.0}, overrides={"c": ["seed=5", "+note=3"]})
    found = board.read(tmp_path)
    assert found.best.name == "b"
    assert sorted(shlex.split(found.best.command)[3:]) == sorted([*HOSTILE, "++optimizer.nesterov=true"])
    (tmp_path / "plan.parquet").unlink()  # then the overrides come from the results
    stack(tmp_path, {"c": 0.5}, overrides={"c": ["seed=5", "+note=3"]})
    assert shlex.split(board.read(tmp_path).best.command)[3:] == ["seed=5", "+note=3"]


def test_a_key_that_two_commands_typed_in_two_ways_is_one(tmp_path):
    plan(tmp_path, {"a": ["optimizer.lr=1"]})
    plan(tmp_path, {"b": ["++optimizer.lr=2"]})
    found = board.read(tmp_path)
    assert (found.differing, told(found, "name", f"{KEYS}optimizer.lr")) == (["optimizer.lr"], [("a", "1"), ("b", "2")])


def test_a_key_may_be_called_as_a_column_is(tmp_path):
    plan(tmp_path, {"a": ["+steps=3", "+rank=x", "seed=1"], "b": ["+steps=4", "+rank=y", "seed=2"]})
    put(tmp_path, "a", overrides=["+steps=3", "+rank=x", "seed=1"], group="g", seed=1)
    put(tmp_path, "b", overrides=["+steps=4", "+rank=y", "seed=2"], group="g", seed=2)
    board.write(tmp_path)
    first, *others = csv.reader((tmp_path / "leaderboard.csv").read_text().splitlines())
    assert first[:6] == ["rank", "job", "steps", "rank", "seed", "val/loss"]
    assert [row[:5] for row in others] == [["1", "a", "3", "x", "1"], ["1", "b", "4", "y", "2"]]
    first, *others = csv.reader((tmp_path / "leaderboard_seeds.csv").read_text().splitlines())
    assert (first[:4], [row[:4] for row in others]) == (["rank", "steps", "rank", "n"], [["1", "3", "x", "2"]])


@pytest.mark.parametrize(
    ("fields", "where"),
    [
        ({"error": "\ud800"}, ""),
        ({"steps": 1e300}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"seed": 2**70}, "seed"),
        ({"seed": -1}, "seed"),
        ({"config_hash": 3}, "config_hash"),
        ({"metrics": {"val/loss": "low"}}, "metrics.val/loss"),
        ({"group": 3}, ""),
        ({"status": "done"}, "status"),
        ({"parameters": {"weight": [["a"]]}}, "parameters.weight"),
    ],
)
def test_a_record_with_values_of_other_types_cannot_be_read_and_says_where(fields, where, tmp_path):
    put(tmp_path, "a", 0.5, **fields)
    if "group" in fields:
        job = json.loads((tmp_path / "a" / "result.json").read_text())
        (tmp_path / "a" / "result.json").write_text(json.dumps(job | {"job": {"group": 3}}))
        where = "job.group"
    put(tmp_path, "b", 1.0)
    put(tmp_path, os.fsdecode(b"\xff"))
    board.write(tmp_path)
    first, second = rows(tmp_path)
    assert (first["job"], first["status"], second["job"], second["status"]) == ("b", "completed", "a", "unreadable")
    assert f"result.json cannot be read: {where}" in second["error"]


def test_the_winners_command_trains_to_its_digits(tmp_path):
    typed = ["optimizer=adam", "optimizer.lr=0.05", "seed=3", "trainer.max_epochs=5"]
    metrics = train(tmp_path / "first", *typed)["metrics"]
    put(tmp_path, "job", metrics=metrics, overrides=["name=study", *typed])
    again = shlex.split(board.read(tmp_path).best.command)[3:]
    assert train(tmp_path / "second", *again)["metrics"] == metrics


def test_the_terminal_shows_the_top(tmp_path):
    for k in range(23):
        put(tmp_path, f"{k:02}-a", k, overrides=[f"optimizer.lr={k}", "seed=0"], group=str(k), seed=0)
        put(tmp_path, f"{k:02}-b", k, overrides=[f"optimizer.lr={k}", "seed=1"], group=str(k), seed=1)
    found = board.write(tmp_path)
    shown = printed(found)
    assert f"... 26 more in {tmp_path}/leaderboard.csv" in shown
    assert f"... 3 more in {tmp_path}/leaderboard_seeds.csv" in shown
    assert len(shown.splitlines()) == 2 * (1 + 20 + 1) + 2 + 2 + 2
    assert "more in" not in printed(found, top=46)
    assert "2 more in" in printed(found, top=44)
    assert "41 more jobs are not shown." in board.markdown(found, 5)
    assert board.markdown(found, 5).count("\n| ") == 2 * (2 + 5)
    assert "not shown" not in board.markdown(found, board.MAX_ROWS)
    assert shown.endswith(f"leaderboard  {tmp_path}/leaderboard.md\n")


def test_a_narrow_terminal_wraps_between_words(tmp_path):
    for lr in (0.25, 0.125):
        put(tmp_path, str(lr), lr, overrides=["optimizer=sgd", f"optimizer.lr={lr}", f"data.path={'x' * 300}{lr}"])
    found = board.read(tmp_path)
    table = printed(found, width=44, is_terminal=True).split("\n2 jobs")[0].splitlines()
    assert max(map(len, table)) <= 44
    assert table[0] == "rank 1, lr 0.125, data.path "
    assert "excess loss 0.125, status completed," in " ".join(map(str.strip, table))
    wide = printed(found, width=44).splitlines()  # in a pipe
    assert wide[1].split() == ["1", "0.125", "x" * 32 + "...", "0.125", "0.125", "completed", "0.2"]


def test_who_writes_last_has_read_last(tmp_path):
    put(tmp_path, "a")
    board.write(tmp_path)
    with (tmp_path / board.LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        writer = threading.Thread(target=board.write, args=(tmp_path,))
        writer.start()
        writer.join(0.2)
        assert writer.is_alive()  # it waits for the lock
        put(tmp_path, "b")
    writer.join()
    assert [row["job"] for row in rows(tmp_path)] == ["a", "b"]


def test_a_full_disk_costs_a_warning(tmp_path, quota, caplog):
    put(tmp_path, "a")
    board.write(tmp_path)
    put(tmp_path, "b", 0.5)
    quota(20)
    assert board.write(tmp_path).best.name == "b"
    said = f"cannot write {tmp_path}/leaderboard.csv: File too large; make room"
    assert f"the leaderboard of {tmp_path} could not be written: {said}" in caplog.text
    assert [row["job"] for row in rows(tmp_path)] == ["a"]  # the older table is complete
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".leaderboard.lock", "a", "b", "leaderboard.csv", "leaderboard.md"
    ]  # fmt: skip
    (tmp_path / board.LOCK).unlink()
    (tmp_path / board.LOCK).mkdir()
    assert board.write(tmp_path).best.name == "b"


def test_no_cell_is_a_formula_and_numbers_stay_numbers(tmp_path):
    own = {"metric": "=cmd()", "mode": "min"}
    typed = {"a": ["data.split=@SUM(A1)", "optimizer.lr=-1.5"], "b": ["data.split=-x", "optimizer.lr=1e-3"]}
    for name, overrides in typed.items():
        metrics = {"=cmd()": -0.5}
        put(tmp_path, name, 1.0, overrides=[*overrides, "+=x=1"], error="=1+1", own=own, metrics=metrics)
        put(tmp_path, f"{name}2", 1.0, overrides=[*overrides, "seed=2"], own=own, metrics=metrics, seed=2)
    for name in typed:
        for job, seed in ((name, 1), (f"{name}2", 2)):
            path = tmp_path / job / "result.json"
            read = json.loads(path.read_text())
            path.write_text(json.dumps(read | {"seed": seed, "job": read["job"] | {"group": name}}))
    board.write(tmp_path)
    for name in (board.TABLE, board.SEEDS):
        for row in rows(tmp_path, name):
            for cell in (*row, *row.values()):
                assert cell[:1] not in {*"=+-@\t\r"} or is_number(cell), (name, row)
    first = rows(tmp_path)[0]
    assert (first["'=cmd()"], first["data.split"], first["optimizer.lr"]) == ("-0.5", "'@SUM(A1)", "-1.5")
    assert first["error"] == "'=1+1"


def is_number(text):
    try:
        float(text)
    except ValueError:
        return False
    return True


EVIL = "a\x1b[2J\x07b\x9bc\x7fd\re\u202ef"


@pytest.mark.parametrize("terminal", [False, True])
def test_no_text_of_a_job_controls_the_terminal(terminal, tmp_path):
    own = {"metric": f"val{EVIL}", "mode": "min"}
    put(tmp_path, "a", 1.0, overrides=[f"data.path={EVIL}", f"{EVIL}=1"], own=own, error=EVIL)
    put(tmp_path, "b", 2.0, overrides=["data.path=b"], own=own, status="failed", error=EVIL)
    found = board.write(tmp_path)
    for shown in (
        printed(found, is_terminal=terminal), printed(found, width=40, is_terminal=terminal),
        (tmp_path / board.TEXT).read_bytes().decode(),
    ):  # fmt: skip
        assert "a?[2J" in shown
        assert all(c == "\n" or c.isprintable() for c in shown), shown


def test_the_text_of_the_page_holds_no_control_character(tmp_path):
    logger = RunLogger(str(tmp_path))
    logger.log_text("leaderboard", f"| {EVIL} |", 0)
    logger.close()
    (event,) = events(tmp_path).Tensors("leaderboard/text_summary")
    assert event.tensor_proto.string_val[0].decode() == f"| {printable(EVIL)} |"


def test_the_command_says_that_the_disk_is_full(swept, tmp_path, quota):
    folder = shutil.copytree(swept, tmp_path / "swept")
    for path in (folder / "_sweep").iterdir():
        path.unlink()
    quota(100)
    code, out, errors = command(entry, f"sweep={folder}", "page=true")
    assert code == 1
    assert "6 jobs: 5 completed, 1 diverged" in out
    remedy = "File too large; make room, or choose another folder with output_root=<folder>"
    assert [line.partition(" could not be written: ")[2] for line in errors.splitlines()] == [
        f"cannot write {folder}/leaderboard.csv: {remedy}"
    ]


def test_the_command_writes_and_shows(tmp_path, monkeypatch):
    tmp_path /= "a sweep, with = and é"
    tmp_path.mkdir()
    for name, value in [("a", 1.0), ("b", 2.0)]:
        put(tmp_path, name, value, overrides=[f"optimizer.lr={name}"], metrics={"val/loss": value, "test/loss": -value})
    pages = []
    monkeypatch.setattr(page, "write_page", lambda folder, trust: pages.append(folder))
    code, out, err = command(entry, f"sweep={tmp_path}")
    assert (code, err, pages) == (0, "", [])
    assert out.splitlines()[1].split()[:2] == ["1", "a"]
    assert [row["job"] for row in rows(tmp_path)] == ["a", "b"]
    code, out, err = command(entry, f"sweep={tmp_path}", "metric=test/loss", "top=1")
    assert (code, err) == (0, "")
    assert out.splitlines()[1].split()[:3] == ["1", "b", "-2"]
    assert out.splitlines()[2].startswith("... 1 more in ")
    assert [row["test/loss"] for row in rows(tmp_path)] == ["-2.0", "-1.0"]
    code, out, err = command(entry, f"sweep={tmp_path}", "mode=max", "page=true")
    assert (code, err, pages) == (0, "", [tmp_path])
    assert [row["job"] for row in rows(tmp_path)] == ["b", "a"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "sweep=<folder> is missing; name a sweep's folder, as in sweep=outputs/sweeps/<name>"),
        (["sweep=nowhere"], "sweep=nowhere: there is no such folder"),
        (["sweep=plain"], "sweep=plain: this folder has no plan, so it is no sweep"),
        (["sweep=study", "metric=x"], "metric=x: no job of study has measured it; choose one of val/loss"),
        (["sweep=study", "mode=up"], "mode=up: choose min or max"),
        (["sweep=study", "top=0"], "top=0: must be a whole number from 1"),
        (["sweep=study", "top=many"], "top=many: must be a whole number from 1"),
    ],
)
def test_a_mistake_ends_with_one_message_and_writes_nothing(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for folder in ("plain", "study"):
        (tmp_path / folder).mkdir()
    put(tmp_path / "plain", "run", job={})  # a run without a job
    put(tmp_path / "study", "job")
    code, out, err = command(entry, *arguments)
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {said}")
    assert [path.name for path in (tmp_path / "study").iterdir()] == ["job"]
    assert [path.name for path in (tmp_path / "plain").iterdir()] == ["run"]


@pytest.mark.slow("like test_a_column_that_cannot_be_read_is_noted_and_costs_no_new_row")
def test_it_answers_without_torch(tmp_path):
    """Neither the command, nor writing between jobs, imports a package that takes long to import."""
    plan(tmp_path, {"a": ["seed=1"], "b": ["seed=2"], "c": ["seed=3"]})
    put(tmp_path, "a", overrides=["seed=1"], group="g", seed=1)
    stack(tmp_path, {"b": 2.0})
    script = (
        "import sys; from linear_lab import leaderboard; from linear_lab.sweep import board, page\n"
        "board.write(sys.argv[1][6:]); leaderboard.main()\n"
        "print({'torch', 'numpy', 'lightning', 'matplotlib', 'tensorboard', 'pyarrow', 'pandas'} & set(sys.modules))"
    )
    typed = [sys.executable, "-c", script, f"sweep={tmp_path}", "page=false"]
    done = subprocess.run(typed, capture_output=True, text=True, timeout=60)
    assert done.stdout.endswith("\nset()\n"), done.stderr
    assert "3 jobs: 2 completed, 1 waiting" in done.stdout
    (tmp_path / "results.parquet").unlink()  # then the page has no content
    script = script.replace("leaderboard.main()", "page.write_page(sys.argv[1][6:])")
    done = subprocess.run([*typed[:2], script, typed[3]], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("set()\n", "")


def test_between_jobs_it_is_written_as_often_as_its_share_of_the_time_allows(swept, monkeypatch):
    board.write(swept)
    written = []
    monkeypatch.setattr(board, "write", written.append)
    monkeypatch.setitem(board._written, swept, (time.monotonic() - 10, 1.0))
    board.write_if_due(swept)
    assert not written
    monkeypatch.setitem(board._written, swept, (time.monotonic() - 30, 1.0))
    board.write_if_due(swept)
    assert written == [swept]
