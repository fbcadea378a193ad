"""Atomic writes, and files that are never written through a symbolic link."""

import logging
import os
import random
import signal
import time
from datetime import UTC, datetime
from typing import ClassVar

import processes
import pytest
from runs import command, train

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.runs import atomic, folder
from linear_lab.sweep import STOP, board, page, page_content, results
from linear_lab.sweep.job import console_in
from linear_lab.sweep.launchers import log_to_file
from linear_lab.sweep.search import open_storage

SIZE = 1 << 22


@pytest.fixture
def precious(tmp_path):
    """A file outside of the run folder, which the links of a test point to."""
    path = tmp_path / "elsewhere" / "precious"
    path.parent.mkdir()
    path.write_text("precious")
    return path


def test_the_names_of_unfinished_files_cannot_be_guessed(tmp_path):
    names = set()
    for _ in range(5):
        with atomic.writing(tmp_path / "a") as file:
            (part,) = tmp_path.glob("*.part")
            names.add(part.name)
            file.write(b"new")
    assert len(names) == 5
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["last.ckpt", "result.json", "config.yaml", "predictions.csv", "leaderboard.csv"])
def test_a_link_in_the_place_of_a_file_is_replaced_and_not_followed(name, tmp_path, precious):
    for link in (name, f"{name}.part", f".{name}.part"):
        (tmp_path / link).symlink_to(precious)
    atomic.replace(tmp_path / name, b"new")
    assert (tmp_path / name).read_bytes() == b"new"
    assert not (tmp_path / name).is_symlink()
    assert precious.read_text() == "precious"


def test_a_written_file_has_the_rights_of_any_other(tmp_path):
    (tmp_path / "other").touch()
    atomic.replace(tmp_path / "a", b"")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), ValueError("no"), KeyboardInterrupt()])
def test_what_fails_leaves_the_old_file_and_no_other(error, tmp_path):
    (tmp_path / "a").write_text("old")
    with pytest.raises((UserError, ValueError, KeyboardInterrupt)), atomic.writing(tmp_path / "a") as file:
        file.write(b"new")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


@pytest.mark.slow("kills for seconds; the other tests write at each step")
def test_what_killed_processes_left_does_not_pile_up(tmp_path, precious):
    def killed():
        with atomic.writing(tmp_path / "a") as file:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    for _ in range(3):
        assert processes.end(processes.fork(killed)) == -signal.SIGKILL
    assert len(list(tmp_path.glob("*.part"))) == 1
    link = tmp_path / f"{atomic.PART_PREFIX}0.part"
    link.symlink_to(precious)
    with atomic.writing(tmp_path / "b"):  # another writer must not delete this unfinished file
        (mine,) = (path for path in tmp_path.glob("*.part") if not path.is_symlink())
        atomic.replace(tmp_path / "c", b"")
        assert mine.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == [link.name, "b", "c", "elsewhere"]
    assert precious.read_text() == "precious"


def test_of_two_writers_of_one_file_each_writes_its_own(tmp_path):
    with atomic.writing(tmp_path / "a") as one, atomic.writing(tmp_path / "a") as two:
        for _ in range(1000):
            one.write(b"one\n")
            two.write(b"two\n")
    assert set((tmp_path / "a").read_text().split()) in ({"one"}, {"two"})


@pytest.mark.slow("kills for seconds; the other tests write at each step")
def test_a_kill_leaves_the_old_file_or_the_new_one(tmp_path):
    path = tmp_path / "a"

    def write():
        count = 0
        while True:
            count += 1
            atomic.replace(path, bytes([count % 251]) * SIZE, sync=bool(count % 2))

    atomic.replace(path, bytes(SIZE))
    for seed in range(12):
        pid = processes.fork(write)
        before = path.stat().st_ino
        while path.stat().st_ino == before:  # until the process has written once
            time.sleep(0.001)
        time.sleep(random.Random(seed).uniform(0, 0.05))
        os.kill(pid, signal.SIGKILL)
        assert processes.end(pid) == -signal.SIGKILL
        content = path.read_bytes()
        assert len(content) == SIZE
        assert content == content[:1] * SIZE
        assert len(list(tmp_path.iterdir())) <= 2
    atomic.replace(path, b"")
    assert list(tmp_path.iterdir()) == [path]


APPENDED = {  # files that are opened to be locked or appended to, not replaced
    "lock of a run": (folder.LOCK, lambda path: folder.Run(path.parent).lock()),
    "lock of a board": (board.LOCK, results.locked),
    "log of a job": (folder.LOG, console_in),
}


@pytest.mark.parametrize("dangling", [False, True])
@pytest.mark.parametrize("what", APPENDED)
def test_locks_and_logs_refuse_links(what, dangling, tmp_path, precious):
    name, opened = APPENDED[what]
    (tmp_path / name).symlink_to(precious.with_name("missing") if dangling else precious)
    with pytest.raises(UserError, match=rf"{name}: it is a symbolic link"), opened(tmp_path / name):
        pytest.fail("the link was followed")
    assert [path.read_text() for path in precious.parent.iterdir()] == ["precious"]


@pytest.mark.parametrize("dangling", [False, True])
def test_messages_are_not_logged_through_a_link(dangling, tmp_path, precious, capsys, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest adds a FileHandler, and a second is not added
    (tmp_path / "stacks.log").symlink_to(precious.with_name("missing") if dangling else precious)
    with pytest.raises(UserError, match=r"stacks.log: it is a symbolic link"), log_to_file(tmp_path / "stacks.log"):
        pytest.fail("the link was followed")
    assert [path.read_text() for path in precious.parent.iterdir()] == ["precious"]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("name", [".hydra", "checkpoints"])
def test_a_run_is_not_written_through_a_linked_folder(name, tmp_path, precious):
    (tmp_path / name).symlink_to(precious.parent)
    with pytest.raises(UserError, match=rf"{name}: it is a symbolic link"):
        train(tmp_path)
    assert list(precious.parent.iterdir()) == [precious]


@pytest.mark.parametrize("dangling", [False, True])
def test_the_log_of_a_command_refuses_a_link(dangling, tmp_path, precious):
    run = tmp_path / "run"
    run.mkdir()
    (run / "train.log").symlink_to(precious.with_name("missing") if dangling else precious)
    code, _, errors = command(train_entry, f"hydra.run.dir={run}", "logger=none")
    assert [path.read_text() for path in precious.parent.iterdir()] == ["precious"]
    assert (code, errors.count("\n")) == (1, 1)
    assert errors.startswith(f"error: {run}/train.log: it is a symbolic link, and linear_lab never writes")


def test_the_page_of_a_sweep_refuses_a_linked_folder(tmp_path, precious):
    events = precious.with_name("events.out.tfevents.1.a.1.1")
    events.write_text("events")
    for name in (page.PAGE, page_content.LEAST_SQUARES):
        (tmp_path / name).symlink_to(precious.parent)
        message = f"{name}: it is a symbolic link"
        with pytest.raises(UserError, match=message), page_content.replaced_events(tmp_path / name):
            pytest.fail("the link was followed")
    assert sorted(precious.parent.iterdir()) == [events, precious]


def test_the_database_of_a_search_refuses_a_link(tmp_path, precious):
    precious.write_text("")
    (tmp_path / "search.db").symlink_to(precious)
    with pytest.raises(UserError, match=r"search\.db: it is a symbolic link"):
        open_storage(tmp_path)
    assert precious.read_text() == ""


def test_a_job_that_is_a_link_is_not_trained(tmp_path, precious):
    sweep = tmp_path / "sweeps/study"
    sweep.mkdir(parents=True)
    (sweep / "sgd").symlink_to(precious.parent)
    arguments = (f"output_root={tmp_path}", "name=study", "trainer.max_epochs=1", "logger=none")
    code, _, errors = command(train_entry, "-m", *arguments)
    assert code == 1
    assert errors.startswith(f"error: {sweep}/sgd: it is a symbolic link, and linear_lab never writes")
    assert list(precious.parent.iterdir()) == [precious]


def test_a_stop_of_a_sweep_is_not_written_through_a_link(tmp_path, precious):
    (tmp_path / STOP).symlink_to(precious.with_name("missing"))
    atomic.replace(tmp_path / STOP, b"")
    assert list(precious.parent.iterdir()) == [precious]


def test_a_folder_whose_name_is_taken_gets_another(tmp_path, monkeypatch):
    class Draws:
        """Draws aaaa twice, then bbbb."""

        left: ClassVar[list] = ["aaaa", "aaaa", "bbbb"]

        def choices(self, *_, **__):
            return [*self.left.pop(0)]

    class Fixed:
        """A clock that stands."""

        now = staticmethod(lambda _: datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))

    monkeypatch.setattr(atomic.random, "SystemRandom", Draws)
    monkeypatch.setattr(atomic, "datetime", Fixed)
    assert atomic.new(tmp_path).name == "20260102-030405-aaaa"
    assert atomic.new(tmp_path, hidden=True).name == ".20260102-030405-bbbb"


def test_a_file_that_another_process_deletes_before_its_lock_is_made_again(tmp_path, monkeypatch):
    deleted, flock = [], atomic.fcntl.flock

    def late(descriptor, operation):
        if not deleted:
            deleted.extend(tmp_path.glob("*.part"))
            deleted[0].unlink()
        flock(descriptor, operation)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    atomic.replace(tmp_path / "a", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"
    assert len(deleted) == 1


def test_a_log_that_cannot_be_written_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    path = tmp_path / "missing" / "train.log"
    message = f"cannot write {path}: No such file or directory; choose another folder"
    with pytest.raises(UserError, match=message), log_to_file(path):
        pytest.fail("it has begun")
