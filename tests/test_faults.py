"""Faults that really happen to a process: kill -9, SIGINT, SIGTERM."""

import signal
import time

import processes
import pytest
from runs import events, record, resume, scalars, train

OVERRIDES = (
    "data=synthetic", "data.samples=200", "data.batch_size=8", "optimizer=adam", "trainer.max_epochs=100"
)  # fmt: skip


def wait_for(condition, process):
    end = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.fixture
def uninterrupted(once):
    return once("uninterrupted", lambda folder: train(folder, *OVERRIDES, "logger=tensorboard"))


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
