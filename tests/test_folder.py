"""The run folder: each run has its own, one process holds its lock, and a kill leaves no half-written file."""

import json
import multiprocessing
import os
import re
import resource
import shutil
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from linear_lab import UserError
from linear_lab.runs import atomic, folder


def make(root):
    return str(atomic.new(root))


def test_launches_of_one_second_have_folders_of_their_own(tmp_path):
    with ProcessPoolExecutor(2) as pool:
        folders = list(pool.map(make, [str(tmp_path)] * 40))
    assert len(set(folders)) == 40
    assert all(re.fullmatch(r"\d{8}-\d{6}-[a-z0-9]{4}", os.path.basename(folder)) for folder in folders)  # noqa: PTH119
    assert not any(os.listdir(folder) for folder in folders)  # noqa: PTH208 - check_room leaves no file


def test_a_name_that_is_taken_is_not_shared(tmp_path, monkeypatch):
    letters, now = iter("aab"), atomic.datetime.now(atomic.UTC)
    monkeypatch.setattr(atomic, "datetime", SimpleNamespace(now=lambda zone: now))  # so that both have the same time
    monkeypatch.setattr(atomic.random.SystemRandom, "choices", lambda self, *_, k: next(letters) * k)
    names = [make(str(tmp_path))[-4:] for _ in range(2)]
    assert names == ["aaaa", "bbbb"]


@pytest.mark.parametrize("root", ["/dev/null/outputs", "/proc/outputs"])
def test_a_root_that_cannot_hold_a_run_is_named(root):
    with pytest.raises(UserError, match=rf"cannot make a run folder in {root}.*choose another"):
        make(root)


def test_a_full_disk_is_found_before_training(tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))  # as a quota does
    try:
        with pytest.raises(UserError, match=r"cannot write .*: File too large; make room"):
            make(str(tmp_path))
        assert not list(tmp_path.iterdir())
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_folder_is_held_by_one_process(tmp_path):
    other = folder.Run(tmp_path)
    with folder.Run(tmp_path).recording(), pytest.raises(UserError, match="another process"), other.recording():
        pytest.fail("two processes hold the folder")
    assert not other.held
    with folder.Run(tmp_path).recording() as again:
        again.write(status="completed")
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (UserError("lr is wrong"), "failed", "lr is wrong"),
        (ZeroDivisionError("x"), "failed", "ZeroDivisionError('x')"),
        (KeyboardInterrupt(), "interrupted", None),
        (SystemExit(143), "interrupted", None),
    ],
)
def test_the_record_says_how_a_run_ended(error, status, text, tmp_path):
    with pytest.raises(type(error)), folder.Run(tmp_path).recording() as one:
        assert json.loads((tmp_path / "result.json").read_text())["status"] == "running"
        one.write(steps=3)
        raise error
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["status"], record["error"], record["steps"]) == (status, text, 3)
    assert record["seconds"] > 0


def test_the_record_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    with folder.Run(tmp_path).recording() as one:
        one.write(steps=1)
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(UserError, match=r"cannot write .*result\.json: No space left"):
                one.write(steps=2)
        assert json.loads((tmp_path / "result.json").read_text())["steps"] == 1
        assert {path.name for path in tmp_path.iterdir()} == {".lock", "result.json"}


def test_numbers_without_a_word_in_json_are_null(tmp_path):
    with folder.Run(tmp_path).recording() as one:
        one.write(metrics={"train/loss": float("nan")}, parameters={"weight": [[float("inf")]]})
    record = json.loads((tmp_path / "result.json").read_text())
    assert (record["metrics"], record["parameters"]) == ({"train/loss": None}, {"weight": [[None]]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it has no result.json"),
        ("{half", "cannot be read"),
        ("[]", "cannot be read"),
        ('{"status": "completed"}', "cannot be read"),
        ('{"versions": {"linear_lab": "99.0"}}', "linear_lab 99.0 wrote it, this is .*update"),
    ],
)
def test_a_folder_without_a_readable_record_is_named(content, message, tmp_path):
    if content is not None:
        (tmp_path / "result.json").write_text(content)
    with pytest.raises(UserError, match=message):
        folder.Run.open(tmp_path)


def test_a_folder_without_its_config_is_named(tmp_path):
    with folder.Run(tmp_path).recording() as one:
        one.write(status="completed")
    with pytest.raises(UserError, match=r"it has no \.hydra/config\.yaml"):
        folder.Run.open(tmp_path)


def test_a_resumed_run_keeps_its_record_until_it_begins(tmp_path):
    with folder.Run(tmp_path).recording() as one:
        one.begin("a: 1", ["resume=x"], seed=0)
        one.write(status="completed")
    before = (tmp_path / "result.json").read_text()
    with pytest.raises(UserError, match="mistyped"), folder.Run.open(tmp_path).recording():
        raise UserError("mistyped")
    assert (tmp_path / "result.json").read_text() == before
    with pytest.raises(UserError, match="later"), folder.Run.open(tmp_path).recording() as again:
        again.begin("a: 2", ["resume=y"])
        raise UserError("later")
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "failed"
    assert (tmp_path / folder.OVERRIDES).read_text() == "- resume=x\n- resume=y\n"


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(UserError, match=r"resume=.*/nothing: there is no such folder"):
        folder.Run.open(tmp_path / "nothing", "resume")


@given(st.lists(st.tuples(*[st.integers(0, 50)] * 3), min_size=2, max_size=2))
def test_releases_compare_as_numbers(pair):
    one, two = pair
    assert (folder.release(".".join(map(str, one))) < folder.release(".".join(map(str, two)))) == (one < two)


def test_git_revision_is_that_of_the_project(monkeypatch, tmp_path):
    revision = folder.git_revision()
    monkeypatch.chdir(tmp_path)
    assert folder.git_revision() == revision
    monkeypatch.setenv("PATH", "")
    assert folder.git_revision() is None


def test_a_kill_while_a_folder_is_cleared_leaves_no_record(tmp_path, monkeypatch):
    def killed(*_, **__):
        raise KeyboardInterrupt

    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "result.json").write_text("{}")
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        folder.Run(tmp_path).clear()
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoints"]


class Killed(BaseException):
    pass


@pytest.mark.parametrize("steps", range(6))
def test_a_kill_leaves_no_folder_without_its_record(steps, tmp_path, monkeypatch):
    left = [True] * steps  # writes and renames that still succeed

    def dying(function):
        def attempt(*args, **options):
            if not left:
                raise Killed
            left.pop()
            return function(*args, **options)

        return attempt

    monkeypatch.setattr(folder, "replace", dying(folder.replace))
    monkeypatch.setattr(folder.Path, "rename", dying(folder.Path.rename))
    new = folder.Run.new(tmp_path, "sgd", {folder.CONFIG: "seed: 0\n", folder.OVERRIDES: "[]\n"})
    with pytest.raises(Killed), new:
        raise Killed
    visible = [path for path in tmp_path.iterdir() if path.name[0] != "."]
    assert len(visible) == (steps >= 4)
    for path in visible:
        assert (folder.Run.open(path).path / folder.CONFIG).read_text() == "seed: 0\n"
        assert re.fullmatch(r"\d{8}-\d{6}-[a-z0-9]{4}-sgd", path.name)


def test_a_claimed_folder_is_its_own_and_held(tmp_path):
    with folder.Run.new(tmp_path, "", {}) as run:
        assert folder.is_held(run.path)
        (run.path / "checkpoints").mkdir()
    for name in ("result.json", "checkpoints/best.ckpt"):
        (run.path / "result.json").unlink(missing_ok=True)
        (run.path / name).write_text("")
        message = rf"already holds a run \({name.rpartition('/')[2]}\).*with resume="
        with pytest.raises(UserError, match=message), folder.Run(run.path).claimed():
            pytest.fail("the folder was claimed twice")


@pytest.mark.parametrize("name", ["result.json", ".hydra/config.yaml", ".hydra/overrides.yaml", "train.log"])
def test_a_pipe_is_not_waited_for(name, tmp_path):
    with folder.Run(tmp_path).recording() as one:
        one.begin("a: 1", ["a=1"])
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(UserError, match=f"{name}: it is not a regular file"):
        folder.Run.open(tmp_path)
    with pytest.raises(ValueError, match="not a regular file") if name == "result.json" else nullcontext():
        folder.Run(tmp_path).read()
    with pytest.raises(OSError, match="No such device"), open(tmp_path / name, "a", opener=atomic.no_link):
        pytest.fail("a pipe without a reader was opened")


@pytest.mark.parametrize("content", [b"{", b"5", b"[5]", b"a: b", b"\xff", b"[" * 20_000, ...])
def test_overrides_that_cannot_be_read_begin_anew(content, tmp_path):
    with folder.Run(tmp_path).lock() as held:
        held.begin("seed: 1\n", [])
        path = tmp_path / ".hydra/overrides.yaml"
        path.mkdir() if content is ... else path.write_bytes(content)
        with pytest.raises(UserError, match=r"overrides\.yaml") if content is ... else nullcontext():
            held.begin("seed: 2\n", ["seed=2"])
    assert yaml.safe_load((tmp_path / ".hydra/config.yaml").read_text()) == {"seed": 1 if content is ... else 2}
    assert content is ... or yaml.safe_load(path.read_text()) == ["seed=2"]


def test_overrides_are_added_as_yaml(tmp_path):
    typed = ["+note='a: b'", "seed=1", "größe=[1, 2]"]
    with folder.Run(tmp_path).lock() as held:
        held.begin("seed: 1\n", typed[:1])
        held.begin("seed: 1\n", typed[1:])
    assert yaml.safe_load((tmp_path / ".hydra/overrides.yaml").read_text()) == typed


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork:DeprecationWarning")
def test_a_forked_process_does_not_keep_the_folder(tmp_path):
    """The workers of a DataLoader, for example, outlive a killed run by seconds."""
    with folder.Run(tmp_path).lock():
        fork = multiprocessing.get_context("fork")
        begun = fork.Event()
        worker = fork.Process(target=lambda: (begun.set(), time.sleep(60)))
        worker.start()
        begun.wait(60)
    try:
        assert not folder.is_held(tmp_path)
    finally:
        worker.kill()
        worker.join()
