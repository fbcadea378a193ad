"""Faults that really happen to a process: kill -9, SIGINT, SIGTERM."""

import shutil
import signal
import subprocess
import time
from contextlib import suppress

import processes
import pytest
from runs import command, events, record, resume, scalars, slow, train

from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import train as train_entry
from linear_lab.fitting import run

OVERRIDES = (
    "data=synthetic", "data.samples=200", "data.batch_size=8", "optimizer=adam", "trainer.max_epochs=100"
)  # fmt: skip


@pytest.fixture
def disk(tmp_path):
    """A disk of 3 MB, which can be filled and made read-only; skipped where none may be mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("no disk may be mounted here")
    yield place
    subprocess.run(["umount", place], check=True)


def fill(place):
    with (place / "filler").open("ab", buffering=0) as file, suppress(OSError):
        while file.write(bytes(1 << 12)):
            pass


def set_read_only(place):
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)


def is_refused(out):
    code, out, err = out
    assert code == 1
    assert err.startswith("error: cannot write "), err
    assert "Traceback" not in err
    assert len(err.splitlines()) == 1, err


@pytest.mark.parametrize("make_useless", [fill, set_read_only])
def test_a_disk_that_takes_nothing_is_named(make_useless, disk, finished):
    folder = shutil.copytree(finished, disk / "run")
    make_useless(disk)
    before = record(folder)
    is_refused(command(export_entry, f"run={folder}"))
    is_refused(command(train_entry, f"resume={folder}", "trainer.max_epochs=501"))
    assert record(folder) == before
    assert not list(folder.rglob("*.part"))
    assert command(evaluate_entry, f"run={folder}")[0] == 0


@pytest.mark.parametrize("logger", ["tensorboard", *slow("a logger opens more files", "none")])
@pytest.mark.parametrize("what", ["fill", "delete"])
def test_a_disk_that_fills_up_and_a_folder_that_is_deleted_while_training(what, logger, disk, monkeypatch):
    show, folder = run.ProgressBar.on_train_batch_end, disk / "run"

    def happens(bar, trainer, *args):
        if trainer.global_step == 5:
            fill(disk) if what == "fill" else shutil.rmtree(folder)
        show(bar, trainer, *args)

    monkeypatch.setattr(run.ProgressBar, "on_train_batch_end", happens)
    typed = ("trainer.check_val_every_n_epoch=1", "trainer.max_epochs=20", f"logger={logger}")
    is_refused(command(train_entry, f"hydra.run.dir={folder}", *typed))
    if what == "delete":
        assert not folder.exists()
        return
    (disk / "filler").unlink()
    monkeypatch.undo()
    assert resume(folder)["steps"] == 20


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def uninterrupted(once):
    return once("uninterrupted", lambda folder: train(folder, *OVERRIDES, "logger=tensorboard"))


@pytest.mark.slow("compares all curves; test_resumed_run_ends_with_the_same_bits resumes in one process")
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_was_ended_goes_on_to_the_same_bits(signum, uninterrupted, tmp_path):
    process = processes.start("linear_lab.train", f"output_root={tmp_path}", *OVERRIDES)
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/last.ckpt")), process)
    time.sleep(0.2)
    process.send_signal(signum)
    out, errors = process.communicate(timeout=60)
    (folder,) = (tmp_path / "runs").iterdir()
    if signum == signal.SIGKILL:
        assert process.returncode == -signal.SIGKILL
        assert record(folder)["status"] == "running"
    else:
        assert process.returncode == 128 + signum, errors
        assert record(folder)["status"] == "interrupted"
        assert "Traceback" not in errors
        assert f"resume={folder}" in out
    one, two = resume(folder), record(uninterrupted)
    for key in ("status", "steps", "metrics", "parameters", "best", "initial", "first_step"):
        assert one[key] == two[key], key
    curves, whole = (scalars(run) for run in (folder, uninterrupted))
    assert curves.pop("time/steps_per_second").__len__() == len(whole.pop("time/steps_per_second"))
    assert curves == whole  # the curves have no gap, and no step twice
    for name in ("Images", "Histograms", "Tensors"):
        shown, wanted = (
            {tag: [e.step for e in getattr(found, name)(tag)] for tag in found.Tags()[name.lower()]}
            for found in (events(folder), events(uninterrupted))
        )
        assert shown == wanted
    assert not list(folder.rglob("*.part"))
