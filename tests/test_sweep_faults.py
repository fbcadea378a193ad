"""Faults of a sweep, tested for real: kill -9, signals, a full disk, damaged files, two processes at once."""

import json
import os
import random
import resource
import shlex
import shutil
import signal
import subprocess
import time
from contextlib import suppress

import optuna
import pytest
import torch
import yaml
from processes import end, fork, has_ended
from runs import record, scalars, train
from test_sweep import sweep

from linear_lab.runs.fingerprints import NOT_HASHED
from linear_lab.sweep import board, job, page
from linear_lab.tracking.tensorboard import event_files

GRID = (
    "data=synthetic", "data.samples=60", "data.batch_size=16", "optimizer=sgd,adam", "optimizer.lr=0.1,0.01",
    "trainer.max_epochs=10", "logger.tensorboard.pictures=false",
)  # fmt: skip
JOBS = ("sgd-lr=0.1", "sgd-lr=0.01", "adam-lr=0.1", "adam-lr=0.01")
LIKE = (
    "status", "error", "seed", "steps", "metrics", "parameters", "excess_loss", "optimum", "best", "initial",
    "first_step", "config_hash", "job",
)  # fmt: skip


def start(root, *overrides):
    """Run a sweep in another process; return its id. Its output goes to <root>/<id>."""

    def run(write_page):
        page.write_page = write_page
        (root / f"begun-{os.getpid()}").touch()
        code, said = sweep(root, *overrides)
        (root / str(os.getpid())).write_text(said)
        return code

    pid = fork(run, page.write_page)  # tests may have replaced it in this process
    wait_for((root / f"begun-{pid}").exists, pid)
    return pid


def wait_for(condition, pid=None):
    limit = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < limit
        assert pid is None or not has_ended(pid)
        time.sleep(0.005)


def content(folder):
    """Return the results of a job: its record, weights and curves."""
    found = record(folder)
    kept = {key: found[key] for key in LIKE}
    kept["job"] = found["job"] | {
        "overrides": [item for item in found["job"]["overrides"] if "output_root" not in item]
    }
    curves = scalars(folder)
    del curves["time/steps_per_second"]
    saved = [torch.load(folder / f"checkpoints/{kind}.ckpt", weights_only=True) for kind in ("best", "last")]
    weights = [[*map(torch.Tensor.tolist, state["state_dict"].values())] for state in saved]
    moments = [str(state["optimizer_states"][0]["state"]) for state in saved]
    config = yaml.safe_load((folder / ".hydra/config.yaml").read_text())
    deciding = {key: value for key, value in config.items() if key not in NOT_HASHED}
    return kept | {"curves": curves, "weights": weights, "moments": moments, "config": deciding}


def ended(folder):
    """Return the records of the jobs that have ended, as bytes, and their times of modification."""
    found = {path.parent.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.glob("*/result.json")}
    return {name: it for name, it in found.items() if json.loads(it[0])["status"] == "completed"}


@pytest.fixture(scope="module")
def whole(once):
    """The results of each job of a sweep that was not interrupted."""
    folder = once("whole", lambda root: sweep(root, *GRID, "name=whole")) / "sweeps/whole"
    found = {name: content(folder / name) for name in JOBS}
    assert all(it["status"] == "completed" for it in found.values())
    return found


@pytest.fixture
def without_page(monkeypatch):
    """Leave out the pictures of the page, which take longest in a short sweep."""
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)


def check(folder, whole):
    """Check that the results are those of the whole sweep, bit for bit, and that nothing is missing or there twice."""
    assert {path.name for path in folder.iterdir() if path.is_dir() and path.name[0] != "_"} == set(JOBS)
    assert {name: content(folder / name) for name in JOBS} == whole
    assert not [*folder.rglob("*.part")]
    with (folder / "leaderboard.csv").open() as file:
        assert len(file.readlines()) == len(JOBS) + 1


@pytest.mark.slow("ten kills; test_sweep has jobs that were interrupted")
def test_a_sweep_killed_at_ten_random_moments_ends_as_one_that_was_not(whole, tmp_path):
    moments = random.Random(0)
    kills = count = 0
    before = {}
    while kills < 10 or before:
        folder = tmp_path / "sweeps" / f"study{count}"
        pid = start(tmp_path, *GRID, f"name={folder.name}")
        if kills == 0:  # the first kill is not at a random time
            wait_for((folder / JOBS[2] / "checkpoints/last.ckpt").exists, pid)
        elif kills < 10:
            time.sleep(moments.uniform(0.05, 0.6))
        if kills < 10:
            os.kill(pid, signal.SIGKILL)
        code = end(pid)
        if kills == 0:
            assert [*board.read(folder).jobs["status"]] == ["completed", "completed", "interrupted", "waiting"]
        now = ended(folder)
        assert {name: now.get(name) for name in before} == before  # no job ran twice
        before = now
        if code == -signal.SIGKILL:
            kills += 1
        else:
            assert code == 0
            check(folder, whole)
            before, count = {}, count + 1


@pytest.mark.slow("like test_a_signal_between_two_jobs")
def test_signals_save_and_say_how_to_go_on(whole, without_page, tmp_path):
    folder, typed, before = tmp_path / "sweeps/study", [*GRID, "name=study"], {}
    for signum, number in ((signal.SIGINT, 1), (signal.SIGTERM, 3)):
        pid = start(tmp_path, *typed)
        wait_for((folder / JOBS[number] / "checkpoints/last.ckpt").exists, pid)
        os.kill(pid, signum)
        assert end(pid) == 128 + signum
        said = (tmp_path / str(pid)).read_text()
        assert "interrupted; the results of finished jobs are kept" in said
        assert "Traceback" not in said
        assert f"\ninterrupted  {JOBS[number]}\n" in said
        assert [*board.read(folder).jobs["status"]][: number + 1] == ["completed"] * number + ["interrupted"]
        (go_on,) = [line for line in said.splitlines() if line.startswith("go on")]
        typed = shlex.split(go_on.partition(" -m linear_lab.train -m ")[2])
        assert {name: it for name, it in ended(folder).items() if name in before} == before
        before = ended(folder)
    pid = start(tmp_path, *typed)
    time.sleep(random.Random(1).uniform(0, 0.5))
    os.kill(pid, signal.SIGINT)
    assert end(pid) == 130
    assert sweep(tmp_path, *typed)[0] == 0
    check(folder, whole)


@pytest.mark.slow("a sweep that is stopped in between; test_folder has the lock")
def test_two_sweeps_of_one_name_share_the_jobs(whole, without_page, tmp_path):
    folder, command = tmp_path / "sweeps/study", (*GRID, "name=study")
    one = start(tmp_path, *command)
    wait_for((folder / JOBS[0] / "checkpoints/last.ckpt").exists, one)
    os.kill(one, signal.SIGSTOP)  # during the first job
    code, said = sweep(tmp_path, *command, "trainer.max_epochs=11")
    assert code == 1
    assert f"{JOBS[0]}: trainer.max_epochs was 10, is 11" in said
    code, said = sweep(tmp_path, *command)
    assert code == 0
    assert f"running  {JOBS[0]}: another process trains it" in said
    assert set(ended(folder)) == set(JOBS[1:])
    before = ended(folder)
    os.kill(one, signal.SIGCONT)
    assert end(one) == 0
    assert {name: it for name, it in ended(folder).items() if name != JOBS[0]} == before
    assert [len(event_files(folder / name)) for name in JOBS] == [1, 1, 1, 1]
    check(folder, whole)


@pytest.mark.slow("test_folder has the same lock")
def test_two_sweeps_begun_in_the_same_moment(whole, without_page, tmp_path):
    assert [end(pid) for pid in [start(tmp_path, *GRID, "name=study") for _ in range(2)]] == [0, 0]
    assert [len(event_files(tmp_path / "sweeps/study" / name)) for name in JOBS] == [1, 1, 1, 1]
    check(tmp_path / "sweeps/study", whole)


def trials(folder):
    """Return the trials of a search, and the results and the validations of their jobs."""
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'search.db'}")
    found = [(trial.params, trial.state.name, trial.value, trial.user_attrs) for trial in study.get_trials()]
    records = [record(folder / job["job"]) for *_, job in found]
    return found, [{key: it[key] for key in LIKE if key != "job"} for it in records]


@pytest.mark.slow("four kills; test_search checks that a killed search draws the same trials")
def test_a_search_killed_at_random_moments_is_one_that_was_not(without_page, tmp_path):
    typed = (
        "sweep=search", "hydra.sweeper.trials=7", *GRID[:3], "trainer.max_epochs=8", "logger=none",
        "trainer.check_val_every_n_epoch=1",
    )  # fmt: skip
    assert sweep(tmp_path, *typed, "name=whole")[0] == 0
    moments, before, kills, code = random.Random(2), {}, 0, None
    while code != 0:
        pid = start(tmp_path, *typed, "name=study")
        if kills < 4:
            time.sleep(moments.uniform(0.3, 1.0))
            os.kill(pid, signal.SIGKILL)
        code = end(pid)
        kills += code == -signal.SIGKILL
        now = ended(tmp_path / "sweeps/study")
        assert {name: now.get(name) for name in before} == before  # no job ran twice
        before = now
    assert kills == 4
    found = trials(tmp_path / "sweeps/study")
    assert found == trials(tmp_path / "sweeps/whole")
    assert {state for _, state, *_ in found[0]} == {"COMPLETE", "PRUNED"}


@pytest.fixture
def scarce(tmp_path):
    """A folder on a small disk, and functions that fill the disk and free it; a quota if no disk can be mounted."""
    disk, limits = tmp_path / "disk", resource.getrlimit(resource.RLIMIT_FSIZE)
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", disk], capture_output=True).returncode:
        yield (
            disk,
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),
        )
        return

    def fill():
        with (disk / "filler").open("ab", buffering=0) as file, suppress(OSError):
            for size in (1 << 16, 1 << 12, 1):
                with suppress(OSError):
                    while file.write(bytes(size)):
                        pass

    yield disk, fill, (disk / "filler").unlink
    subprocess.run(["umount", disk], check=True)


@pytest.mark.slow("trains a sweep again; test_sweep has smaller ones")
def test_a_disk_that_fills_up(scarce, whole, without_page):
    root, fill, make_room = scarce

    def run():
        page.write_page = lambda *_, **__: None
        train_in, count = job.train_in, []

        def filled(*arguments):
            count.append(1)
            if len(count) == 3:
                fill()
            return train_in(*arguments)

        job.train_in = filled
        code, said = sweep(root, *GRID, "name=study")
        make_room()
        (root / "said").write_text(said)
        return code

    folder = root / "sweeps/study"
    assert end(fork(run)) == 1
    said = (root / "said").read_text()
    assert f"\ninterrupted  {JOBS[2]}: cannot write" in said
    assert f"\nwaiting  {JOBS[3]}" in said
    assert "interrupted; " not in said
    before = ended(folder)
    assert set(before) == set(JOBS[:2])
    assert sweep(root, *GRID, "name=study")[0] == 0
    assert {name: ended(folder)[name] for name in before} == before
    check(folder, whole)


def damage(folder, names, content):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[: len(path.read_bytes()) // 2] if content is None else content)


@pytest.mark.slow("trains a sweep twice; test_damage has the same files")
def test_damaged_files_cost_no_more_than_their_job(whole, without_page, once, tmp_path):
    folder = tmp_path / "sweeps/whole"
    shutil.copytree(once("whole", None) / "sweeps/whole", folder)
    before = ended(folder)
    damage(folder / JOBS[0], ["result.json"], None)
    damage(folder / JOBS[1], ["result.json"], b"[]")
    for name in JOBS[2:]:  # as if the sweep had been killed
        (folder / name / "result.json").write_text(json.dumps(record(folder / name) | {"status": "running"}))
    damage(folder / JOBS[2], ["checkpoints/last.ckpt"], None)
    damage(folder / JOBS[3], ["checkpoints/last.ckpt", "checkpoints/best.ckpt"], None)
    damage(folder, ["sweep.json", "leaderboard.csv"], None)
    assert sweep(tmp_path, *GRID, "name=whole")[0] == 0
    logs = {name: (folder / name / "train.log").read_text() for name in JOBS[2:]}
    assert "taking" in logs[JOBS[2]]
    assert f"{JOBS[3]}: cannot read" in logs[JOBS[3]]
    assert "it is trained from the start" in logs[JOBS[3]]
    check(folder, whole)
    assert not set(ended(folder).items()) & set(before.items())


@pytest.mark.slow("trains a sweep again; test_sweep has smaller ones")
def test_a_job_alone_and_in_another_order_is_the_same(whole, without_page, tmp_path):
    again = ("optimizer=adam,sgd", "optimizer.lr=0.01,0.1")
    assert sweep(tmp_path, *[item for item in GRID if "optimizer" not in item], *again, "name=study")[0] == 0
    for name in JOBS:
        one, two = content(tmp_path / "sweeps/study" / name), dict(whole[name])
        assert one.pop("job")["group"] == two.pop("job")["group"]
        assert one == two
    optimizer, lr = "optimizer=adam", "optimizer.lr=0.1"
    train(tmp_path / "alone", *[item for item in GRID if "optimizer" not in item], optimizer, lr)
    alone = record(tmp_path / "alone")
    assert {key: alone[key] for key in LIKE[:-1]} == {key: whole["adam-lr=0.1"][key] for key in LIKE[:-1]}
