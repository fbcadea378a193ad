"""The sweep command, run in this process: what it plans, trains and prints."""

import io
import json
import os
import re
import resource
import shlex
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import joblib
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf
from processes import end, fork, has_ended
from runs import command, compose, composer, record, slow

from linear_lab import UserError
from linear_lab import train as entry
from linear_lab.fitting.callbacks import Interrupted
from linear_lab.runs.folder import Run
from linear_lab.sweep import board, dispatch, job, launchers, live, mistakes, page, plan, results, sweeper
from linear_lab.terminal import layout

FAST = ("trainer.max_epochs=3", "logger=none", "optimum=false")


def sweep(root, *overrides):
    """Run a sweep command in this process; return its exit code, and its output, error messages first."""
    code, out, errors = command(entry, "-m", f"output_root={root}", *overrides)
    return code, errors + out


def check(root, *overrides, jobs, code=0):
    """Run a sweep named ``study``, and check the status of each job; return the output."""
    ended, said = sweep(root, *FAST, "name=study", *overrides)
    assert ended == code, said
    found = board.read(root / "sweeps/study").jobs
    assert dict(found.select("name", "status").iter_rows()) == jobs
    return said


def stamps(root):
    """Return the time at which each job's record was written."""
    return {path.parent.name: path.stat().st_mtime_ns for path in root.glob("sweeps/study/*/result.json")}


@pytest.fixture
def trained(monkeypatch):
    """The folders in which training began. The page's pictures are left out, since they take longest."""
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)
    train_in, folders = job.train_in, []

    def counted(run, *arguments):
        folders.append(run.path.name)
        return train_in(run, *arguments)

    monkeypatch.setattr(job, "train_in", counted)
    return folders


@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_a_grid_that_grows_and_jobs_that_change(trained, tmp_path):
    one, two, grown, other = "sgd-lr=0.1", "sgd-lr=0.01", "sgd-lr=0.1-seed=1", "sgd-lr=0.01-seed=1"
    done = dict.fromkeys([one, two], "completed")
    check(tmp_path, "optimizer.lr=0.1,0.10,0.01,1e-2", jobs=done)  # each of the two configs is typed twice
    assert trained == [one, two]
    before = stamps(tmp_path)
    said = check(tmp_path, "optimizer.lr=0.01,0.1", jobs=done)
    assert "failed" not in said
    done |= dict.fromkeys([grown, other], "completed")
    check(tmp_path, "optimizer.lr=0.1,0.01", "seed=0,1", jobs=done)  # the old configs have not changed
    assert trained == [one, two, grown, other]
    assert {name: stamps(tmp_path)[name] for name in before} == before
    _, *seeds = (tmp_path / "sweeps/study/leaderboard_seeds.csv").read_text().splitlines()
    assert [line.split(",")[:3] for line in seeds] == [["1", "0.1", "2"], ["2", "0.01", "2"]]  # rank, lr, n
    # one job is resumed alone with another config, so the sweep trains it again
    assert command(entry, f"resume={tmp_path / 'sweeps/study' / two}", "trainer.max_epochs=4")[0] == 0
    before = stamps(tmp_path)
    told = (tmp_path / "sweeps/study/multirun.yaml").read_bytes()
    said = check(tmp_path, "optimizer.lr=0.1,0.01", jobs=done, code=1)
    assert (tmp_path / "sweeps/study/multirun.yaml").read_bytes() == told
    assert (
        f"error: name=study: 1 of 2 jobs were trained with another config; {two}: trainer.max_epochs was 4, is 3; "
        in said
    )
    assert stamps(tmp_path) == before
    check(tmp_path, "optimizer.lr=0.1,0.01", "overwrite=true", jobs=done)
    assert trained == [one, two, grown, other, two]  # only the changed jobs
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
    assert said.startswith(f"failed  {bad}: RuntimeError('it broke')\n")  # printed at once
    assert f"\nfailed  {bad}: RuntimeError('it broke')\n" in said  # and again at the end
    assert "diverged  " not in said.partition("jobs:")[2]  # a diverged job is a result, not a failure
    assert "RuntimeError: it broke" in (tmp_path / "sweeps/study" / bad / "train.log").read_text()
    assert "Traceback" not in said
    broken.clear()
    trained.clear()
    check(tmp_path, grid, "trainer.max_epochs=60", jobs=jobs | {bad: "completed"})
    assert trained == [bad]


@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_what_failed_before_it_began_is_no_trained_job(trained, tmp_path):
    failed, done = (dict.fromkeys(("sgd-seed=0", "sgd-seed=1"), status) for status in ("failed", "completed"))
    check(tmp_path, "seed=0,1", "metric=foo", jobs=failed, code=1)
    check(tmp_path, "seed=0,1", jobs=done)


@pytest.mark.slow("like test_a_signal_between_two_jobs")
def test_an_interrupted_overwrite_goes_on(trained, monkeypatch, tmp_path):
    check(tmp_path, "seed=0,1", jobs={"sgd-seed=0": "completed", "sgd-seed=1": "completed"})
    monkeypatch.setattr(page, "write_page", lambda folder, if_due=False: if_due and os.kill(os.getpid(), 15))
    jobs = {"sgd-seed=0": "completed", "sgd-seed=1": "waiting"}
    said = check(tmp_path, "seed=0,1", "optimizer.lr=0.02", "overwrite=true", jobs=jobs, code=143)
    (go_on,) = (line for line in said.splitlines() if line.startswith("go on"))
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)
    assert command(entry, *shlex.split(go_on.partition(" -m linear_lab.train ")[2]))[0] == 0
    assert trained == ["sgd-seed=0", "sgd-seed=1"] * 2  # the jobs have kept their names
    configs = [OmegaConf.load(tmp_path / "sweeps/study" / name / ".hydra/config.yaml") for name in jobs]
    assert [cfg.optimizer.lr for cfg in configs] == [0.02, 0.02]


def test_jobs_that_begin_after_a_failure_elsewhere_do_not_train(trained, monkeypatch, tmp_path):
    counted = job.train_in

    def failing_elsewhere(run, *arguments):
        (run.path.parent / job.STOP).touch()  # as a worker process would
        return counted(run, *arguments)

    monkeypatch.setattr(job, "train_in", failing_elsewhere)
    jobs = {"sgd-seed=0": "completed", "sgd-seed=1": "waiting", "sgd-seed=2": "waiting"}
    said = check(tmp_path, "seed=0,1,2", "fail_fast=true", jobs=jobs, code=1)
    assert "interrupted" not in said
    monkeypatch.setattr(job, "train_in", counted)
    check(tmp_path, "seed=0,1,2", "fail_fast=true", jobs=dict.fromkeys(jobs, "completed"))


@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_a_folder_that_cannot_be_made_costs_its_job(trained, tmp_path):
    (tmp_path / "sweeps/study").mkdir(parents=True)
    (tmp_path / "sweeps/study/sgd-seed=1").touch()
    jobs = {"sgd-seed=0": "completed", "sgd-seed=1": "waiting", "sgd-seed=2": "completed"}
    said = check(tmp_path, "seed=0,1,2", jobs=jobs, code=1)
    assert "\nwaiting  sgd-seed=1: FileExistsError" in said


@pytest.mark.slow("like test_a_job_that_another_process_begins_first_keeps_its_config")
def test_another_folder_for_the_sweep(trained, tmp_path):
    folder = tmp_path / "a folder" / "it's \\ mine"
    place = f"hydra.sweep.dir={layout.in_quotes(str(folder))}"
    code, said = sweep(tmp_path, *FAST, place, "optimizer.lr=0.1,-1")
    assert code == 1
    assert record(folder / "sgd-lr=0.1")["status"] == "completed"
    assert (
        said.count("failed  sgd-lr=-1: optimizer: lr must be") == 2
    )  # printed at once, although it was the last job, and again at the end
    (go_on,) = (line for line in said.splitlines() if line.startswith("go on"))
    trained.clear()
    assert command(entry, *shlex.split(go_on.partition(" -m linear_lab.train ")[2]))[0] == 1
    assert trained == ["sgd-lr=-1"]
    assert not (tmp_path / "sweeps").exists()


def test_a_run_that_cannot_go_on_says_why(trained, tmp_path):
    data = tmp_path / "my.csv"
    data.write_text("a,c\n" + "".join(f"{k},{3 * k - 1}\n" for k in range(20)))
    grid, jobs = ("data=table", f"data.path={data}", "data.y=c", "optimizer.lr=0.1,0.2"), ("sgd-lr=0.1", "sgd-lr=0.2")
    check(tmp_path, *grid, jobs=dict.fromkeys(jobs, "completed"))
    path = tmp_path / "sweeps/study/sgd-lr=0.2/result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"status": "interrupted"}))
    data.write_text("a,c\n" + "".join(f"{k},{4 * k - 1}\n" for k in range(20)))
    said = check(tmp_path, *grid, jobs=dict(zip(jobs, ("completed", "failed"), strict=True)), code=1)
    assert "failed  sgd-lr=0.2: data: " in said


def test_a_job_that_another_process_begins_first_keeps_its_config(trained, monkeypatch, tmp_path):
    check(tmp_path, "seed=0", jobs={"sgd": "completed"})
    folder = tmp_path / "sweeps/study/sgd"
    (folder / "result.json").write_text(json.dumps(record(folder) | {"status": "interrupted"}))
    (folder / ".hydra/config.yaml").write_text("the other's")
    monkeypatch.setattr(dispatch, "is_held", lambda _: False)  # it takes the folder a moment later
    with Run(folder).lock():
        said = check(tmp_path, "seed=0", jobs={"sgd": "interrupted"}, code=1)
    assert "interrupted  sgd: it did not run" in said
    assert (folder / ".hydra/config.yaml").read_text() == "the other's"


@pytest.mark.parametrize("looked", ["before", "after"])
@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_a_job_that_another_process_leaves_unfinished_is_trained_in_the_end(looked, trained, monkeypatch, tmp_path):
    counted, folder = job.train_in, tmp_path / "sweeps/study/sgd-seed=0"
    folder.mkdir(parents=True)
    held = Run(folder).lock()
    held.__enter__()

    def left(run, *arguments):
        if run.path != folder:
            held.__exit__(None, None, None)
        return counted(run, *arguments)

    monkeypatch.setattr(job, "train_in", left)
    if looked == "before":  # it takes the folder a moment later
        monkeypatch.setattr(dispatch, "is_held", lambda _: False)
    check(tmp_path, "seed=0,1", jobs={"sgd-seed=0": "completed", "sgd-seed=1": "completed"})
    assert trained == ["sgd-seed=1", "sgd-seed=0"]


def test_a_signal_between_two_jobs(trained, monkeypatch, tmp_path):
    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(page, "write_page", lambda folder, if_due=False: if_due and os.kill(os.getpid(), 15))
    jobs = {"sgd-seed=0": "completed", "sgd-seed=1": "waiting"}
    said = check(tmp_path, "seed=0,1", jobs=jobs, code=143)
    assert "interrupted; the results of finished jobs are kept" in said
    assert signal.getsignal(signal.SIGTERM) == handler


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ("optimizer=sgd,adam", "optimizer.momentum=0,0.9"),
            r"optimizer\.momentum=0: optimizer=adam has no momentum, unlike sgd; run two commands .*"
            r"optimizer=sgd and optimizer\.momentum=\.\.\., one with optimizer=adam and without",
        ),
        (("optimizer.lrr=1,2",), r"optimizer\.lrr=1,2: .*did you mean optimizer\.lr\?"),
        (("optimiser=sgd,adam",), r"optimiser=sgd,adam: .*did you mean optimizer\?"),
        (("lr=1,2",), r"lr=1,2: .*did you mean optimizer\.lr\?"),
        (("optimizer=sgdd,adam",), "sgdd"),
        (("name=a,b",), "name=a,b: it cannot differ between the jobs of a sweep; give one value"),
        (("overwrite=true,false",), "overwrite=true,false: it cannot differ"),
        (("tags=a,b",), "tags=a,b: it cannot differ"),
        (("fail_fast=true,false",), "fail_fast=true,false: it cannot differ"),
        (("output_root='a','b'",), "output_root='a','b': it cannot differ"),
        (("overwrite=flase", "seed=0,1"), "overwrite=flase: choose true or false"),
        (("fail_fast=1", "seed=0,1"), "fail_fast=1: choose true or false"),
        (("mode=up", "seed=0,1"), "mode=up: choose min or max"),
        (("name=", "seed=0,1"), "name=: the name of a folder"),
        (("seed=range(0)",), "the sweep has no job, since one of its ranges is empty"),
        (("trainer.max_epochs=2", "optimizer=sgd,adm"), "optimizer=adm: choose one of adam, .*sgd"),
        (("hydra.sweeper.trial=1",), r"hydra\.sweeper\.trial=1: "),
        (("sweep=search", "hydra.sweeper.trial=1"), r"did you mean hydra\.sweeper\.trials\?"),
        (("launch=joblib", "hydra.launcher.n_jobs=0", "seed=0,1"), "n_jobs=0: must be at least 1"),
        (("sweep=search", "mode=up"), "mode=up: choose min or max"),
        (("sweep=search", "hydra.sweeper.at_once=0"), "at_once=0: must be a whole number of at least 1"),
        (("sweep=search", "hydra.sweeper.prune=no"), "prune=no: choose true or false"),
        (("sweep=search", "hydra.sweeper.seed=a"), "seed=a: must be a whole number"),
        (("sweep=search", "optimizer.lrr=interval(0,1)"), "did you mean optimizer.lr"),
        (("name=../x", "seed=0,1"), "name=../x: the name of a folder"),
        (("metric='a\udcff','b'",), "metric='a\ufffd','b': it is not UTF-8; rename the file"),
        (("data=table", "data.path=a\udcff.csv", "seed=0,1"), "data.path='a\ufffd.csv': it is not UTF-8"),
        (("seed=${nothing},1",), "Interpolation key 'nothing' not found"),
        (("+note=1", "seed=0,1"), r"\+note=1: nothing reads note"),
        (("+lr=0.1,0.2",), r"\+lr=0.1,0.2: nothing reads lr; did you mean optimizer\.lr\?"),
        (("optimizer=sgd,adam", "+optimizer.momentun=0.9"), r"did you mean optimizer\.momentum\?"),
        (("console=[1],[2]",), r"console=\[1\]: "),
        (("seed=range(0,5,0)",), r"seed=range\(0,5,0\): it has infinitely many values"),
    ],
)  # fmt: skip
def test_what_a_sweep_refuses_before_anything_is_trained(overrides, message, trained, tmp_path):
    code, said = sweep(tmp_path, *FAST, *overrides)
    assert code == 1
    assert re.search(message, said), said
    assert "Traceback" not in said
    assert not trained
    assert not [*tmp_path.glob("sweeps/*")]


@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_tags_are_on_the_leaderboard_and_change_no_job(trained, tmp_path):
    done = dict.fromkeys(["sgd-lr=0.1", "sgd-lr=0.01"], "completed")
    check(tmp_path, "optimizer.lr=0.1,0.01", jobs=done)
    header = (tmp_path / "sweeps/study/leaderboard.csv").read_text().splitlines()[0]
    assert "tags" not in header
    jobs = done | dict.fromkeys(["sgd-lr=0.1-seed=1", "sgd-lr=0.01-seed=1"], "completed")
    said = check(tmp_path, "optimizer.lr=0.1,0.01", "seed=0,1", "tags=[new data,007]", jobs=jobs)
    assert len(trained) == 4
    assert re.search(r"rank +lr +seed +tags +val/loss", said)
    tags = dict(board.read(tmp_path / "sweeps/study").jobs.select("name", "key:tags").iter_rows())
    assert tags == {name: "new data, 007" if "seed" in name else None for name in jobs}
    assert "seed,tags,val/loss" in (tmp_path / "sweeps/study/leaderboard.csv").read_text()
    check(tmp_path, "optimizer.lr=0.1,0.01", "tags=other", jobs=jobs)
    assert len(trained) == 4
    check(tmp_path, "optimizer.lr=0.2", "tags=other", jobs=jobs | {"sgd": "completed"})
    assert record(tmp_path / "sweeps/study/sgd")["job"]["tags"] == "other"


@pytest.mark.slow("like test_a_job_that_another_process_begins_first_keeps_its_config")
def test_each_job_starts_from_the_checkpoint(trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = dict.fromkeys(["sgd-lr=0.1", "sgd-lr=0.01"], "completed")
    assert sweep(tmp_path, *FAST, "name=first", "seed=3")[0] == 0
    first = record(tmp_path / "sweeps/first/sgd")
    typed = ("optimizer.lr=0.1,0.01", "ckpt_path=sweeps/first/sgd/checkpoints/last.ckpt")
    check(tmp_path, *typed, jobs=done)
    for name in done:
        assert record(tmp_path / "sweeps/study" / name)["initial"]["weight"] == first["parameters"]["weight"]
    config = OmegaConf.load(tmp_path / "sweeps/study/sgd-lr=0.1/.hydra/config.yaml")
    assert config.ckpt_path == str(tmp_path / "sweeps/first/sgd/checkpoints/last.ckpt")
    trained.clear()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    check(tmp_path, typed[0], f"ckpt_path={config.ckpt_path}", jobs=done)
    assert not trained  # ckpt_path names the same file
    _, said = sweep(tmp_path, *FAST, "name=study", typed[0])
    assert "ckpt_path was" in said
    assert "2 of 2 jobs were trained with another config" in said


@pytest.mark.slow("like test_a_job_that_another_process_begins_first_keeps_its_config")
def test_hostile_values(trained, tmp_path):
    values = ("../../x", "a b=größe", "x" * 300, "x" * 300 + "y")
    typed = ",".join(f"'{value}'" for value in values)
    root = tmp_path / "root"
    reader = "+callbacks.reader={_target_: runs.Noted, note: '${note}'}"
    code, said = sweep(root, *FAST, "name=study", f"+note={typed}", reader)
    assert code == 0, said
    assert len(trained) == len(set(trained)) == len(values)
    folder = root / "sweeps/study"
    assert [*tmp_path.iterdir()] == [root]
    assert {path.parent.name for path in folder.glob("*/result.json")} == set(trained)
    notes = [OmegaConf.load(folder / name / ".hydra/config.yaml").note for name in trained]
    assert notes == list(values)
    assert [note.strip("'") for note in board.read(folder).jobs["key:note"]] == list(values)
    trained.clear()
    assert sweep(root, *FAST, "name=study", f"+note={typed}", reader)[0] == 0
    assert not trained


def names(rows, optimizer="sgd"):
    return plan.names(plan.listed(rows), optimizer).to_list()


def test_names_have_what_differs_in_the_order_typed():
    rows = [
        ["seed=1", "optimizer=adam", "optimizer.lr=0.1", "data=toy"],
        ["seed=2", "optimizer=sgd", "optimizer.lr=0.1", "data=toy"],
    ]
    assert names(rows) == ["seed=1-adam", "seed=2-sgd"]
    assert names([["seed=1"]], "adam") == ["adam"]
    assert names([["optimizer=adam", "seed=1"], ["optimizer=adam", "seed=2"]]) == ["adam-seed=1", "adam-seed=2"]
    assert plan.names(plan.listed(rows[:1]), "sgd", ["seed"]).to_list() == ["adam-seed=1"]
    two = [[f"optimizer.weight_decay={a}", f"model.weight_decay={b}"] for a in "12" for b in "12"]
    assert names(two)[0] == "sgd-optimizer.weight_decay=1-model.weight_decay=1"  # both keys are written in full


def test_jobs_whose_names_would_be_alike_have_their_fingerprints_in_them():
    alike = [["+a=2", "optimizer=sgd"], ["+a=1-sgd"], ["+a=1", "optimizer=sgd"]]
    found = plan.plan_jobs(plan.listed(alike), composer())
    assert found["name"].to_list() == ["a=2-sgd", *(f"a=1-sgd-{found['config_hash'][row][:8]}" for row in (1, 2))]
    assert found["name"].n_unique() == 3


@given(
    st.lists(
        st.lists(st.text(max_size=130).filter(lambda text: "\0" not in text), min_size=2, max_size=2),
        min_size=1, max_size=6, unique_by=tuple,
    )
)  # fmt: skip
def test_names_are_unique_and_safe(values):
    rows = [[f"optimizer.lr={one}", f"+data.path={two}"] for one, two in values]
    found = names(rows)
    assert len(set(found)) == len(found)
    for name in [*found, *(plan.folder_name(f"{one}-{two}") for one, two in values)]:
        assert re.fullmatch(r"[A-Za-z0-9+=][A-Za-z0-9._=+-]*", name)
        assert len(name) <= 120


@given(st.lists(st.text(min_size=1), min_size=2, max_size=2, unique=True))
def test_safe_names_differ_where_the_given_ones_do(texts):
    assert plan.folder_name(texts[0]) != plan.folder_name(texts[1])


def test_differences_of_configs():
    before = {"a": {"b": 1, "c": [1]}, "seed": 1, "name": "x", "resume": None, "gone": 2, "kind": {"d": 1}}
    now = {"a": {"b": 2, "c": [1]}, "seed": 1, "name": "y", "resume": "z", "new": 3, "kind": "e"}
    assert list(mistakes.differences(before, now)) == [
        "a.b was 1, is 2", "gone was 2, is -", "kind was {'d': 1}, is e", "new was -, is 3",
    ]  # fmt: skip


def planned(names, hashes=None, **typed):
    """Return a plan with some jobs."""
    columns = {"name": names, "config_hash": hashes or names, "group": names, "problem": names}
    return pl.DataFrame(columns | typed)


@pytest.mark.slow("like test_jobs_that_begin_after_a_failure_elsewhere_do_not_train")
def test_an_interrupted_overwrite_gives_no_two_jobs_one_name(trained, tmp_path):
    check(tmp_path, "seed=1,2", "trainer.max_epochs=2", jobs=dict.fromkeys(["sgd-seed=1", "sgd-seed=2"], "completed"))
    folder = tmp_path / "sweeps/study"
    before = plan.read_plan(folder)
    # the plan has another config for seed=1, and another job with the name of seed=2
    plan.write_plan(folder, before.head(1).with_columns(config_hash=pl.lit("0" * 16)), "val/loss", "min")
    trained.clear()
    jobs = dict.fromkeys(["sgd-seed=1", "sgd-seed=2", "sgd-seed=3"], "completed")
    check(tmp_path, "seed=1,2,3", "trainer.max_epochs=2", jobs=jobs)
    assert trained == ["sgd-seed=3"]
    assert plan.read_plan(folder)["config_hash"].to_list()[:2] == before["config_hash"].to_list()


def test_what_two_commands_plan_is_added(tmp_path):
    def add(folder, letter):
        for number in range(20):
            name = f"{letter}{number}"
            plan.write_plan(folder, planned([name], **{f"+{letter}": [name]}), "val/loss", "min")
        return 0

    assert [end(pid) for pid in [fork(add, tmp_path, letter) for letter in "ab"]] == [0, 0]
    found = plan.read_plan(tmp_path)
    assert sorted(found["name"]) == sorted(f"{letter}{number}" for letter in "ab" for number in range(20))
    assert plan.overrides(found).to_list() == [[f"+{name[0]}={name}"] for name in found["name"]]


STACKED = ("launch=stacked", "hydra.launcher.keep=0")
GRID = ("optimizer.lr=0.1,0.01", "seed=0,1")
FOUR = dict.fromkeys([f"sgd-lr={lr}-seed={seed}" for lr in ("0.1", "0.01") for seed in (0, 1)], "completed")


def stacked(root):
    """Return the names of the jobs in the results of stacks."""
    found = results.read_results(root / "sweeps/study")
    return [] if found is None else found["name"].to_list()


def results_file(root):
    path = root / "sweeps/study" / results.RESULTS
    return path.read_bytes(), path.stat().st_mtime_ns


@pytest.mark.slow("like test_a_changed_config_is_refused_where_a_stack_was_trained")
def test_jobs_trained_one_by_one_are_not_trained_again_in_a_stack(trained, tmp_path):
    check(tmp_path, *GRID, jobs=FOUR)
    before = stamps(tmp_path)
    trained.clear()
    check(tmp_path, *GRID, *STACKED, jobs=FOUR)
    check(tmp_path, *GRID[::-1], *STACKED, jobs=FOUR)  # in another order
    assert not stacked(tmp_path)
    grown = [f"sgd-lr=0.2-seed={seed}" for seed in (0, 1)]
    check(tmp_path, "optimizer.lr=0.1,0.2", "seed=0,1", *STACKED, jobs=FOUR | dict.fromkeys(grown, "completed"))
    assert stacked(tmp_path) == grown
    assert not trained
    assert stamps(tmp_path) == before


@pytest.mark.slow("like test_a_changed_config_is_refused_where_a_stack_was_trained")
def test_jobs_trained_in_a_stack_are_not_trained_again_one_by_one(trained, tmp_path):
    check(tmp_path, *GRID, *STACKED, jobs=FOUR)
    assert stacked(tmp_path) == [*FOUR]
    before = results_file(tmp_path)
    check(tmp_path, *GRID, jobs=FOUR)
    check(tmp_path, *GRID[::-1], jobs=FOUR)  # in another order
    check(tmp_path, *GRID[::-1], *STACKED, jobs=FOUR)
    assert not trained
    grown = [f"sgd-lr=0.2-seed={seed}" for seed in (0, 1)]
    check(tmp_path, "optimizer.lr=0.1,0.2", "seed=0,1", jobs=FOUR | dict.fromkeys(grown, "completed"))
    assert trained == grown
    assert results_file(tmp_path) == before
    (_, *rows) = (tmp_path / "sweeps/study/leaderboard.csv").read_text().splitlines()
    assert sorted(row.split(",")[1] for row in rows) == sorted([*FOUR, *grown])


@pytest.mark.slow("like test_a_changed_config_is_refused_where_a_stack_was_trained")
def test_the_best_of_a_stack_get_run_folders_once(trained, tmp_path):
    grid = (*GRID, "launch=stacked", "hydra.launcher.keep=2")
    check(tmp_path, *grid, jobs=FOUR)
    found = board.read(tmp_path / "sweeps/study").ranked
    assert set(trained) == {*found["name"].head(2)}
    assert len(trained) == 2
    assert found["folder"].to_list() == [True, True, False, False]
    assert all((tmp_path / "sweeps/study" / name / "checkpoints/best.ckpt").exists() for name in trained)
    assert stacked(tmp_path) == [*FOUR]
    records, table = stamps(tmp_path), results_file(tmp_path)
    assert set(records) == set(trained)
    check(tmp_path, *grid, jobs=FOUR)
    assert len(trained) == 2
    assert (stamps(tmp_path), results_file(tmp_path)) == (records, table)


@pytest.mark.parametrize("launch", [STACKED, *slow("stacked is quick", ("launch=local",))])
def test_a_changed_config_is_refused_where_a_stack_was_trained(launch, trained, tmp_path):
    check(tmp_path, *GRID, *STACKED, jobs=FOUR)
    before = results_file(tmp_path)
    told = plan.read_plan(tmp_path / "sweeps/study")
    said = check(tmp_path, *GRID, "trainer.max_epochs=4", *launch, jobs=FOUR, code=1)
    (first, *_) = FOUR
    assert (
        f"error: name=study: 4 of 4 jobs were trained with another config; {first}: trainer.max_epochs was 3, is 4; "
        "train them again with overwrite=true" in said
    )
    assert results_file(tmp_path) == before
    assert plan.read_plan(tmp_path / "sweeps/study").equals(told)
    check(tmp_path, *GRID, "trainer.max_epochs=4", "overwrite=true", *launch, jobs=FOUR)
    steps = board.read(tmp_path / "sweeps/study").jobs["steps"].to_list()
    assert steps == [4] * 4
    assert stacked(tmp_path) == ([*FOUR] if launch == STACKED else [])
    assert trained == ([] if launch == STACKED else [*FOUR])


def test_a_stack_trains_afresh_what_was_trained_one_by_one_with_another_config(trained, tmp_path):
    check(tmp_path, *GRID, jobs=FOUR)
    said = check(tmp_path, *GRID, "trainer.max_epochs=4", *STACKED, jobs=FOUR, code=1)
    assert "4 of 4 jobs were trained with another config; sgd-lr=0.1-seed=0: trainer.max_epochs was 3, is 4; " in said
    check(tmp_path, *GRID, "trainer.max_epochs=4", "overwrite=true", *STACKED, jobs=FOUR)
    assert stacked(tmp_path) == [*FOUR]
    assert not stamps(tmp_path)
    assert board.read(tmp_path / "sweeps/study").jobs["steps"].to_list() == [4] * 4


def begun(root, *overrides):
    """Run a sweep in another process, without the page's pictures; return its id. Its output goes to <root>/<id>."""

    def run():
        page.write_page = lambda *_, **__: None
        code, said = sweep(root, *FAST, "name=study", *overrides)
        (root / str(os.getpid())).write_text(said)
        return code

    return fork(run)


@pytest.mark.slow("like test_a_job_that_is_a_link_is_not_trained")
def test_two_stacks_of_one_name_at_once(trained, tmp_path):
    (tmp_path / "sweeps/study").mkdir(parents=True)
    with results.stacking(tmp_path / "sweeps/study"):  # makes both processes wait, so that they run at the same time
        pids = [begun(tmp_path, *GRID, *STACKED) for _ in range(2)]
        while len(plan.read_plan(tmp_path / "sweeps/study")) < 4:
            time.sleep(0.05)
        time.sleep(1)
    assert [end(pid) for pid in pids] == [0, 0], [(tmp_path / str(pid)).read_text() for pid in pids]
    assert stacked(tmp_path) == [*FOUR]  # one row per job
    assert not stamps(tmp_path)
    logs = [(tmp_path / str(pid)).read_text() for pid in pids]
    assert all("4 jobs: 4 completed" in said for said in logs)
    before = results_file(tmp_path)
    check(tmp_path, *GRID, *STACKED, jobs=FOUR)
    assert results_file(tmp_path) == before


@pytest.mark.slow("like test_a_checkpoint_cut_in_half_is_trained_from_the_start")
def test_jobs_one_by_one_wait_for_a_stack_and_train_nothing_twice(trained, tmp_path):
    folder = tmp_path / "sweeps/study"
    check(tmp_path / "other", *GRID, *STACKED, jobs=FOUR)
    folder.mkdir(parents=True)
    with results.stacking(folder):
        pid = begun(tmp_path, *GRID)
        while len(plan.read_plan(folder)) < 4:
            time.sleep(0.05)
        time.sleep(1)
        assert not has_ended(pid)
        assert not stamps(tmp_path)
        rows = results.read_results(tmp_path / "other/sweeps/study")
        results.add(folder, rows)  # as another process that trains stacks would
    assert end(pid) == 0, (tmp_path / str(pid)).read_text()
    said = (tmp_path / str(pid)).read_text()
    assert "waiting  another command trains stacks of this sweep" in said
    assert "4 jobs: 4 completed" in said
    assert not stamps(tmp_path)
    assert stacked(tmp_path) == [*FOUR]


@pytest.mark.slow("like test_a_checkpoint_cut_in_half_is_trained_from_the_start")
def test_what_a_lost_stack_has_not_trained_is_trained_one_by_one(trained, tmp_path):
    folder = tmp_path / "sweeps/study"
    check(tmp_path / "other", *GRID, *STACKED, jobs=FOUR)
    folder.mkdir(parents=True)
    with results.stacking(folder):
        pid = begun(tmp_path, *GRID)
        while len(plan.read_plan(folder)) < 4:
            time.sleep(0.05)
        results.add(folder, results.read_results(tmp_path / "other/sweeps/study").head(2))
    assert end(pid) == 0, (tmp_path / str(pid)).read_text()
    assert stacked(tmp_path) == [*FOUR][:2]
    assert set(stamps(tmp_path)) == {*[*FOUR][2:]}


@pytest.mark.slow("like test_a_job_that_another_process_begins_first_keeps_its_config")
def test_a_sweep_of_which_nothing_was_typed(trained, tmp_path):
    code, said = sweep(tmp_path, "name=study", "logger=none", "optimum=false")
    assert code == 0, said
    assert sweep(tmp_path, "name=alone")[0] == 0
    assert trained == ["sgd", "sgd"]


@pytest.mark.slow("twenty jobs, so that the growth can be measured")
def test_memory_does_not_grow_with_the_jobs(trained, tmp_path):
    def run():
        page.write_page = lambda *_, **__: None
        train_in, used = job.train_in, []

        def measured(*arguments):
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20)
            return train_in(*arguments)

        job.train_in = measured
        code, _ = sweep(
            tmp_path, "seed=range(20)", "trainer.max_epochs=2", "logger.tensorboard.pictures=false", "name=study"
        )
        (tmp_path / "used").write_text(json.dumps(used))
        return code

    assert end(fork(run)) == 0
    used = json.loads((tmp_path / "used").read_text())
    assert len(used) == 20
    assert (used[-1] - used[8]) / 11 < 0.12  # MB per job, after a warm-up


def test_a_job_that_exits_with_1_is_no_interruption(trained, monkeypatch, tmp_path):
    def leave(*_):
        raise SystemExit(1)

    monkeypatch.setattr(job, "train_in", leave)
    code, said = sweep(tmp_path, *FAST, "name=study", "seed=0,1")
    assert code == 1
    assert "interrupted;" not in said
    assert "2 jobs: " in said


def test_many_failures_are_counted(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(sweeper, "SHOWN", 1)
    jobs = {f"sgd-lr=-{number}": "failed" for number in (1, 2, 3)}
    said = check(tmp_path, "optimizer.lr=-1,-2,-3", jobs=jobs, code=1)
    listed = said.partition("3 jobs: 3 failed")[2]
    assert listed.count("optimizer: lr must be a positive number") == 1
    assert re.search(r"\.\.\. 2 more in .*sweeps/study/leaderboard\.", listed)


def test_an_interrupted_worker_of_a_pool_fails_its_job_alone(trained, monkeypatch, tmp_path):
    monkeypatch.setattr(job, "launcher", lambda: "JoblibLauncher")
    monkeypatch.setattr(job.multiprocessing, "parent_process", object)
    monkeypatch.setattr(job, "end_with_parent", lambda: None)
    train_in = job.train_in

    def interrupted(run, *arguments):
        if run.path.name == "sgd-seed=0":
            raise Interrupted(143)
        return train_in(run, *arguments)

    monkeypatch.setattr(job, "train_in", interrupted)
    said = check(tmp_path, "seed=0,1", jobs={"sgd-seed=0": "interrupted", "sgd-seed=1": "completed"}, code=1)
    assert "sgd-seed=0: interrupted" in said


@pytest.mark.parametrize(("devices", "visible"), [("1", "3"), ("2", None)])
def test_a_job_of_a_pool_has_one_gpu(devices, visible, trained, monkeypatch, tmp_path):
    monkeypatch.setattr(job, "launcher", lambda: "JoblibLauncher")
    monkeypatch.setattr(job.multiprocessing, "parent_process", object)
    monkeypatch.setattr(job, "end_with_parent", lambda: None)
    monkeypatch.setattr(job, "leased_gpu", lambda: "3")
    monkeypatch.setattr(job.torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "all")
    seen = []
    monkeypatch.setattr(job, "train_locked", lambda *_: seen.append(os.environ["CUDA_VISIBLE_DEVICES"]))
    _, said = sweep(tmp_path, *FAST, "name=study", "seed=0", f"trainer.devices={devices}", "trainer.accelerator=auto")
    refused = "trainer.devices=2: launch=joblib gives each job one GPU; try launch=local"
    assert (visible in seen, refused in said) == (visible == "3", visible is None)


def test_a_job_that_another_command_trained_with_another_config_is_refused(tmp_path):
    run = Run(tmp_path / "sgd")
    run.path.mkdir()
    run.write(status="completed", config_hash="of another config", metrics={"val/loss": 0.5})
    with pytest.raises(UserError, match="sgd: meanwhile, another command has trained it with another config"):
        job.train_locked(compose("name=study"), run, None)
    assert run.record.metrics == {"val/loss": 0.5}


def test_a_job_that_a_stack_trains_is_left_to_it(monkeypatch, tmp_path):
    monkeypatch.setattr(job, "launcher", lambda: "LocalLauncher")
    with results.stacking(tmp_path):
        assert job.train_locked(compose("name=study"), Run(tmp_path / "sgd"), None) is None
    assert not (tmp_path / "sgd").exists()


def test_a_sweep_that_prunes_is_not_stacked(tmp_path):
    launcher = launchers.StackedLauncher(keep=0, rows=0, memory=1, compile=False, history=0, limit=1)
    launcher.config = OmegaConf.create({"hydra": {"sweeper": {"prune": True}}})
    launcher.train_stacks(tmp_path, pl.DataFrame({"name": ["a", "b"]}), None, None)
    assert launcher.notes == ["one by one  2 jobs: hydra.sweeper.prune=true"]
    assert not [*tmp_path.iterdir()]


def test_a_launcher_that_fails_waits_for_the_jobs_in_other_processes(monkeypatch, tmp_path):
    def lost(*_, **__):
        raise RuntimeError("a process was lost")

    held, slept = [False, True, True, True], []
    monkeypatch.setattr(dispatch, "is_held", lambda _: held.pop())
    monkeypatch.setattr(dispatch.time, "sleep", slept.append)
    launches = SimpleNamespace(
        folder=tmp_path, steering=(), launcher=SimpleNamespace(launch=lost), has_pool=False, in_process=False
    )
    assert dispatch.Launches.launch(launches, planned(["sgd"], seed=["0"])) == "RuntimeError: a process was lost"
    assert (held, len(slept)) == ([], 3)


def test_minus_one_means_all_cores():
    launches = SimpleNamespace(stacked=None, processes=-1)
    dispatch.Launches.check(launches)
    assert launches.processes == joblib.cpu_count() >= 1


def test_a_terminal_shows_the_progress_of_a_sweep(swept):
    file = io.StringIO()
    with live.Watch(layout.Screen(file=file, width=100, force_terminal=True), swept) as watch:
        watch.show(board.read(swept).jobs["name"])
        assert watch.progress.live.is_started
    assert not watch.progress.live.is_started
    assert "6/6" in file.getvalue()
    assert "diverged 1" in file.getvalue()


def test_a_config_that_cannot_be_read_is_told(tmp_path):
    assert mistakes.config_changes(tmp_path, {"seed": 1}) == "the config in its run folder cannot be read"
