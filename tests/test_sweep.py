"""What a sweep plans and trains, by the command in this process."""

import gc
import io
import json
import logging
import os
import re
import resource
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from runs import record

from linear_lab import train as entry
from linear_lab.sweep import board, job, page, plan
from linear_lab.sweep.records import read_jobs

FAST = ("trainer.max_epochs=3", "logger=none", "optimum=false")


def sweep(root, *overrides):
    """Sweep in this process, as by the command; its exit code, and what it said."""
    handlers, arguments, said, code = logging.getLogger().handlers[:], sys.argv, io.StringIO(), 0
    sys.argv = ["train", "-m", f"output_root={root}", *overrides]
    try:
        with redirect_stdout(said), redirect_stderr(said):
            entry.main()
    except SystemExit as end:
        code = end.code or 0
    finally:
        sys.argv = arguments
        for handler in set(logging.getLogger().handlers) - set(handlers):
            handler.close()
        logging.getLogger().handlers[:] = handlers
        logging.captureWarnings(False)
    return code, said.getvalue()


def fork(function, *arguments):
    """Call in a child of this warm process: importing all again would take seconds; its id."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    try:
        code = function(*arguments)
    finally:
        os._exit(code)


def end(pid):
    """Wait for a child; its exit code, or less the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def check(root, *overrides, jobs, code=0):
    """Sweep under the name ``study``; the jobs there are then, by name, and what was said."""
    ended, said = sweep(root, *FAST, "name=study", *overrides)
    assert ended == code, said
    found = board.read(root / "sweeps/study").jobs
    assert {job.name: job.status for job in found} == jobs
    return said


def stamps(root):
    """When each job's record was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("sweeps/study/*/result.json")}


@pytest.fixture
def trained(monkeypatch):
    """The folders in which training began; without the pictures of the page, which take longest."""
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)
    train_in, folders = job.train_in, []

    def counted(run, *arguments):
        folders.append(run.path.name)
        return train_in(run, *arguments)

    monkeypatch.setattr(job, "train_in", counted)
    return folders


def test_a_grid_that_grows_and_jobs_that_change(trained, tmp_path):
    one, two, grown, other = "sgd-lr=0.1", "sgd-lr=0.01", "sgd-lr=0.1-seed=1", "sgd-lr=0.01-seed=1"
    done = dict.fromkeys([one, two], "completed")
    check(tmp_path, "optimizer.lr=0.1,0.10,0.01,1e-2", jobs=done)  # two configs, each typed twice
    assert trained == [one, two]
    before = stamps(tmp_path)
    said = check(tmp_path, "optimizer.lr=0.01,0.1", jobs=done)
    assert "failed" not in said
    done |= dict.fromkeys([grown, other], "completed")
    check(tmp_path, "optimizer.lr=0.1,0.01", "seed=0,1", jobs=done)  # a new key finds the old jobs
    assert trained == [one, two, grown, other]
    assert {name: stamps(tmp_path)[name] for name in before} == before
    # one of them goes on alone, and is not the sweep's any more
    alone, argv = ["train", f"resume={tmp_path / 'sweeps/study' / two}", "trainer.max_epochs=4"], sys.argv
    sys.argv = alone
    try:
        with redirect_stdout(io.StringIO()):
            entry.main()
    finally:
        sys.argv = argv
    before = stamps(tmp_path)
    said = check(tmp_path, "optimizer.lr=0.1,0.01", jobs=done, code=1)
    assert (
        f"error: name=study: 1 of 2 jobs were trained with another config; {two}: trainer.max_epochs was 4, is 3; "
        in said
    )
    assert stamps(tmp_path) == before
    check(tmp_path, "optimizer.lr=0.1,0.01", "overwrite=true", jobs=done)
    assert trained == [one, two, grown, other, two]  # only what had changed
    assert {name for name, when in stamps(tmp_path).items() if when != before[name]} == {two}
    assert record(tmp_path / "sweeps/study" / two)["steps"] == 3


def test_failures_are_told_tried_again_and_stop_the_rest_if_asked(trained, monkeypatch, tmp_path):
    counted, broken = job.train_in, {"sgd-lr=0.02"}

    def breaking(run, *arguments):
        if run.path.name in broken:
            with run.recording():
                raise RuntimeError("it broke")
        return counted(run, *arguments)

    monkeypatch.setattr(job, "train_in", breaking)
    one, bad, last, wild = "sgd-lr=0.01", "sgd-lr=0.02", "sgd-lr=0.03", "sgd-lr=9"
    grid = "optimizer.lr=0.01,0.02,0.03,9"
    jobs = {one: "completed", bad: "failed", last: "waiting", wild: "waiting"}
    said = check(tmp_path, grid, "fail_fast=true", jobs=jobs, code=1)
    assert f"waiting  {last}\n" in said
    jobs |= {last: "completed", wild: "diverged"}
    said = check(tmp_path, grid, "trainer.max_epochs=60", "overwrite=true", jobs=jobs, code=1)
    assert said.startswith(f"failed  {bad}: RuntimeError('it broke')\n")  # at once
    assert f"\nfailed  {bad}: RuntimeError('it broke')\n" in said  # and in the end
    assert "diverged  " not in said.partition("jobs:")[2]  # a result
    assert "RuntimeError: it broke" in (tmp_path / "sweeps/study" / bad / "train.log").read_text()
    assert "Traceback" not in said
    broken.clear()
    trained.clear()
    check(tmp_path, grid, "trainer.max_epochs=60", jobs=jobs | {bad: "completed"})
    assert trained == [bad]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("optimizer=sgd,adam", "optimizer.momentum=0,0.9"),
            r"optimizer\.momentum=0: optimizer=adam has no momentum, which sgd has; make it two commands .*"
            r"optimizer=sgd and optimizer\.momentum=\.\.\., one with optimizer=adam without it",
        ),
        (("optimizer.lrr=1,2",), r"optimizer\.lrr=1: .*did you mean optimizer\.lr\?"),
        (("lr=1,2",), r"lr=1: .*lr"),
        (("optimizer=sgdd,adam",), "sgdd"),
        (("name=a,b",), "name=a,b: cannot differ between the jobs of a sweep; give one value"),
        (("overwrite=true,false",), "overwrite=true,false: cannot differ"),
        (("fail_fast=true,false",), "fail_fast=true,false: cannot differ"),
        (("name=../x", "seed=0,1"), "name=../x: it is a folder's name"),
    ],
)  # fmt: skip
def test_what_a_sweep_refuses_before_anything_is_trained(overrides, message, trained, tmp_path):
    code, said = sweep(tmp_path, *FAST, *overrides)
    assert code == 1
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not trained
    assert not [*tmp_path.rglob("result.json")]


def test_hostile_values(trained, tmp_path):
    values = ("../../x", "a b", "a=b", "größe", "x" * 300, "x" * 300 + "y")
    typed = ",".join(f"'{value}'" for value in values)
    root = tmp_path / "root"
    code, said = sweep(root, *FAST, "name=study", f"+note={typed}")
    assert code == 0, said
    assert len(trained) == len(set(trained)) == len(values)
    folder = root / "sweeps/study"
    assert [*tmp_path.iterdir()] == [root]
    assert {path.parent.name for path in folder.glob("*/result.json")} == set(trained)
    notes = [OmegaConf.load(folder / name / ".hydra/config.yaml").note for name in trained]
    assert notes == list(values)
    assert [item.overrides["note"].strip("'") for item in board.read(folder).jobs] == list(values)
    trained.clear()
    assert sweep(root, *FAST, "name=study", f"+note={typed}")[0] == 0
    assert not trained


def test_names_have_what_differs_in_the_order_typed():
    rows = [
        ["seed=1", "optimizer=adam", "optimizer.lr=0.1", "data=toy"],
        ["seed=2", "optimizer=sgd", "optimizer.lr=0.1", "data=toy"],
    ]
    assert plan.names(rows, ["adam", "sgd"]) == ["seed=1-adam", "seed=2-sgd"]
    assert plan.names([["seed=1"]], ["adam"]) == ["adam"]
    two = [[f"optimizer.weight_decay={a}", f"model.weight_decay={b}"] for a in "12" for b in "12"]
    assert plan.names(two, ["sgd"] * 4)[0] == "sgd-optimizer.weight_decay=1-model.weight_decay=1"  # both in full
    alike = plan.names([["+a=1-b=2", "+c=0"], ["+a=1", "+b=2", "+c=1"], ["+a=1", "+b=2", "+c=0"]], ["sgd"] * 3)
    assert len(set(alike)) == 3


@settings(max_examples=50)
@given(
    st.lists(
        st.lists(st.text(max_size=130).filter(lambda text: "\0" not in text), min_size=2, max_size=2),
        min_size=1, max_size=6, unique_by=tuple,
    )
)  # fmt: skip
def test_names_are_unique_and_safe(values):
    rows = [[f"optimizer.lr={one}", f"+data.path={two}"] for one, two in values]
    found = plan.names(rows, ["sgd"] * len(rows))
    assert len(set(found)) == len(found)
    for name in [*found, *(plan.safe(f"{one}-{two}") for one, two in values)]:
        assert re.fullmatch(r"[A-Za-z0-9+=][A-Za-z0-9._=+-]*", name)
        assert len(name) <= 120


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_safe_names_differ_where_the_given_ones_do(texts):
    assert plan.safe(texts[0]) != plan.safe(texts[1])


def test_differences_of_configs():
    before = {"a": {"b": 1, "c": [1]}, "seed": 1, "name": "x", "resume": None, "gone": 2, "kind": {"d": 1}}
    now = {"a": {"b": 2, "c": [1]}, "seed": 1, "name": "y", "resume": "z", "new": 3, "kind": "e"}
    assert list(plan.differences(before, now)) == [
        "a.b was 1, is 2", "gone was 2, is -", "kind was {'d': 1}, is e", "new was -, is 3",
    ]  # fmt: skip


def test_an_interrupted_overwrite_gives_no_two_jobs_one_name(tmp_path):
    typed = plan.Job(["seed=1"], {"seed": 1})
    typed.name = "sgd"
    plan.write_plan(tmp_path, [typed], "val/loss", "min")
    (tmp_path / "sgd").mkdir()
    (tmp_path / "sgd/result.json").write_text(json.dumps({"status": "completed", "config_hash": "old"}))
    _, found, _ = read_jobs(tmp_path)
    assert plan.known_names(tmp_path, found) == {"old": "sgd"}


def test_what_two_commands_plan_is_added(tmp_path):
    def add(letter):
        for number in range(20):
            planned = plan.Job([f"note={letter}{number}"], {"note": f"{letter}{number}"})
            planned.name = f"{letter}{number}"
            plan.write_plan(tmp_path, [planned], "val/loss", "min")
        return 0

    assert [end(pid) for pid in [fork(add, letter) for letter in "ab"]] == [0, 0]
    assert len(json.loads((tmp_path / "sweep.json").read_text())["jobs"]) == 40


def test_memory_does_not_grow_with_the_jobs(trained, tmp_path):
    def run():
        train_in, used = job.train_in, []

        def measured(*arguments):
            gc.collect()  # what only waits to be collected is no leak
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
            return train_in(*arguments)

        job.train_in = measured
        code, _ = sweep(tmp_path, "seed=range(10)", "trainer.max_epochs=2", "logger.pictures=false", "name=study")
        (tmp_path / "used").write_text(json.dumps(used))
        return code

    assert end(fork(run)) == 0
    used = json.loads((tmp_path / "used").read_text())
    assert len(used) == 10
    assert (used[9] - used[3]) / 6 < 0.2  # MB a job
