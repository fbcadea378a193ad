"""Checkpoints, the last step, signals, and resume: a run killed anywhere ends with the bits of one that was not."""

import io
import os
import random
import shutil
import signal

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from runs import record, resume, scalars, train

from linear_lab import UserError
from linear_lab.fitting.callbacks import Interrupted, Soon, StopOnSignal, WholeFileIO
from linear_lab.runs import atomic

FULL_BATCH = ("trainer.max_epochs=7", "trainer.check_val_every_n_epoch=3")
MINI_BATCH = ("data=synthetic", "data.samples=15", "data.fractions=[0.6,0.2,0.2]", "data.batch_size=4", *FULL_BATCH)
VARIANTS = {
    "sgd": (*FULL_BATCH, "optimizer.momentum=0.5"),
    "adam, mini-batches": (*MINI_BATCH, "optimizer=adam"),
    "plateau": (*FULL_BATCH, "scheduler=plateau", "scheduler.patience=0", "loss=mae", "optimizer.lr=2"),
    "plateau, mini-batches": (*MINI_BATCH, "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.9"),
    "step, mini-batches": (*MINI_BATCH, "scheduler=step", "scheduler.step_size=2"),
    "cosine": (*FULL_BATCH, "scheduler=cosine"),
    "lbfgs": (
        *FULL_BATCH,
        "optimizer=lbfgs",
        "optimizer.max_iter=2",
        "optimizer.line_search_fn=null",
        "optimizer.lr=0.1",
    ),
    "validation within the epoch": (
        *MINI_BATCH,
        "trainer.val_check_interval=2",
        "scheduler=plateau",
        "scheduler.patience=0",
    ),
    "part of an epoch": (*MINI_BATCH, "trainer.limit_train_batches=2", "optimizer=adam"),
    "no validation": (*MINI_BATCH, "trainer.limit_val_batches=0", "optimizer=adam"),
    "accumulated gradients": (*MINI_BATCH, "trainer.accumulate_grad_batches=2"),
    "max_steps": (*MINI_BATCH, "trainer.max_steps=11"),
}


class Killed(BaseException):
    """Stands for kill -9: nothing after it is run."""


def run_until(folder, hook, step, action, overrides, monkeypatch):
    """Train, and have something happen in a hook at a step."""

    def act(trainer, *_):
        if trainer.global_step == step and trainer.state.fn == "fit":
            action(folder)

    callback = Callback()
    setattr(callback, hook, act)
    original = Trainer.__init__

    def init(self, *args, callbacks=(), **kwargs):
        original(self, *args, callbacks=[*(callbacks or []), callback], **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "__init__", init)
        patched.setattr(WholeFileIO, "teardown", WholeFileIO.teardown)  # `kill` takes it away
        train(folder, *overrides)


def kill(folder):
    WholeFileIO.teardown = lambda _: None  # what it keeps is lost
    raise Killed((folder / "result.json").read_text())


def same(folder, reference):
    one, two = record(folder), record(reference)
    for key in ("status", "steps", "parameters", "metrics", "best", "initial", "first_step"):
        assert one.get(key) == two.get(key), key


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("how", ["killed", "killed before its checkpoint", "interrupted"])
def test_resumed_run_ends_with_the_same_bits(variant, how, once, tmp_path, monkeypatch):
    if how == "killed":
        monkeypatch.setattr(WholeFileIO, "INTERVAL", 0)  # the other ones have but the first checkpoint on disk
    reference = once(f"whole, {variant}", lambda folder: train(folder, *VARIANTS[variant]))
    steps = record(reference)["steps"]
    for step in {steps, *random.Random(variant + how).sample(range(1, steps), 1)}:
        folder = tmp_path / str(step)
        hook = "on_validation_start" if how == "killed before its checkpoint" else "on_train_batch_end"
        action = (lambda _: os.kill(os.getpid(), signal.SIGINT)) if how == "interrupted" else kill
        try:
            quick = () if how == "interrupted" else ("logger=none",)  # events of killed runs: test_faults
            run_until(folder, hook, step, action, (*VARIANTS[variant], *quick), monkeypatch)
        except Killed as killed:
            (folder / "result.json").write_text(str(killed))  # as kill -9 leaves it
        except Interrupted:
            assert record(folder)["status"] == "interrupted"
        if record(folder)["status"] != "completed":
            resume(folder)
        same(folder, reference)


@pytest.mark.parametrize("validation", ["true", "0"])
@pytest.mark.parametrize("changed", ["trainer.max_epochs", "trainer.max_steps"])
def test_more_epochs_on_resume_equal_as_many_at_once(changed, validation, tmp_path):
    overrides = (*MINI_BATCH[:-2], "trainer.check_val_every_n_epoch=5", "optimizer=adam", "scheduler=step")
    overrides += ("trainer.limit_val_batches=0",) if validation == "0" else ()
    once = train(tmp_path / "once", *overrides, "trainer.max_epochs=12")
    folder = tmp_path / "twice"
    train(folder, *overrides, "trainer.max_epochs=12", f"{changed}=7")
    twice = resume(folder, "trainer.max_epochs=12", "trainer.max_steps=-1")
    assert twice["steps"] == once["steps"] == 36
    assert twice["parameters"] == once["parameters"]
    again = resume(folder)  # nothing is left to do, and nothing changes
    assert {k: again[k] for k in ("steps", "metrics", "best")} == {k: twice[k] for k in ("steps", "metrics", "best")}


@pytest.mark.parametrize(
    ("overrides", "steps"),
    [
        (["trainer.max_epochs=15"], [0, 10, 15]),
        (["trainer.max_epochs=30", "trainer.max_steps=13"], [0, 10, 13]),
        (["trainer.max_epochs=20"], [0, 10, 20]),
        (["trainer.max_epochs=0"], [0]),
        (
            [
                *MINI_BATCH[:-2],
                "trainer.max_epochs=3",
                "trainer.check_val_every_n_epoch=1",
                "trainer.val_check_interval=2",
            ],
            [0, 2, 5, 8, 9],
        ),
    ],
)
def test_curves_start_untouched_and_end_with_the_final_model(overrides, steps, tmp_path):
    result = train(tmp_path, *overrides)
    assert result["steps"] == steps[-1]
    curves = scalars(tmp_path)
    for name in ("train/loss", "val/loss"):
        assert [step for step, _ in curves[name]] == steps
        assert curves[name][0][1] == pytest.approx(result["initial"][name])
        assert curves[name][-1][1] == pytest.approx(result["metrics"][name])
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps[-1]
    if steps != [0]:
        best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
        assert best["global_step"] == min((value, step) for step, value in curves["val/loss"] if step)[1]
    assert last["state_dict"]["network.weight"].tolist() == result["parameters"]["weight"]


def test_max_time_ends_with_the_final_model_too(tmp_path):
    result = train(tmp_path, "trainer.max_epochs=-1", "trainer.max_time=00:00:00:01")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == result["steps"] > 0
    assert scalars(tmp_path)["val/loss"][-1][0] == result["steps"]


def test_a_resumed_cosine_keeps_the_fall_it_began_with(tmp_path):
    train(tmp_path, "scheduler=cosine", "trainer.max_epochs=6")
    resume(tmp_path, "trainer.max_epochs=9")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["T_max"] == 6
    assert "T_max: 6" in (tmp_path / ".hydra" / "config.yaml").read_text()


def test_best_checkpoint_has_the_lowest_val_loss(tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1", "trainer.max_epochs=60", "trainer.check_val_every_n_epoch=1")
    result = train(tmp_path, *overrides)
    curve = scalars(tmp_path)["val/loss"][1:]
    best_step, best_loss = min(curve, key=lambda point: point[1])
    assert result["best"]["step"] == best_step < 60
    assert result["best"]["metrics"]["val/loss"] == pytest.approx(best_loss)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["state_dict"]["network.bias"].tolist() == result["best"]["parameters"]["bias"]


def test_the_best_score_outlives_a_move_of_the_folder(tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1", "trainer.check_val_every_n_epoch=1")
    once = train(tmp_path / "once", *overrides, "trainer.max_epochs=60")
    early = once["best"]["step"] + 2
    train(tmp_path / "here", *overrides, f"trainer.max_epochs={early}")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = resume(tmp_path / "there", "trainer.max_epochs=60")
    assert moved["best"] == once["best"]
    assert not (tmp_path / "here").exists()


def test_checkpoints_that_are_due_at_once_are_made_once(tmp_path, monkeypatch):
    original, made = WholeFileIO.save_checkpoint, []

    def saving(*given, **named):
        made.append(given)
        return original(*given, **named)

    monkeypatch.setattr(WholeFileIO, "save_checkpoint", saving)
    train(tmp_path, *FULL_BATCH)
    assert len(made) == 3  # of steps 3, 6 and 7
    best, last = ((tmp_path / "checkpoints" / f"{kind}.ckpt").read_bytes() for kind in ("best", "last"))
    assert best == last


def test_what_is_due_soon_is_written_once_an_interval_and_best_before_last(tmp_path, monkeypatch):
    now, written, plugin = [100.0], [], WholeFileIO()
    monkeypatch.setattr("linear_lab.runs.checkpoints.time.monotonic", lambda: now[0])
    monkeypatch.setattr(atomic, "replace", lambda path, content: written.append((path.name, step(content))))

    def step(content):
        return torch.load(io.BytesIO(content), weights_only=True)["step"].item()

    best, last = tmp_path / "best", tmp_path / "last"
    values = torch.zeros(())
    for seconds, paths, expected in [
        (0.0, [best, last], [("best", 1), ("last", 1)]),
        (0.5, [last], []),
        (0.6, [best, last], []),
        (0.7, [last], []),
        (1.0, [last], [("best", 3), ("last", 5)]),
        (1.1, [best, last], []),
    ]:
        now[0] = 100 + seconds
        values += 1  # as training changes weights in place
        first = [lambda: written.append("curves")]
        plugin.save_checkpoint({"step": values}, paths[0], Soon(paths, first))
        assert written == ["curves", *expected] * bool(expected)
        written.clear()
    plugin.save_checkpoint({"step": values + 1}, last)  # asked for by name: at once, and nothing older after it
    assert written == ["curves", ("best", 6), ("last", 7)]
    plugin.teardown()
    assert len(written) == 3
    written.clear()
    plugin.save_checkpoint({"step": values}, last, Soon([last], first))
    plugin.write_due()
    assert not written
    now[0] += 1
    plugin.write_due()  # after some step, where no validation comes
    assert written == ["curves", ("last", 6)]


def test_what_a_full_disk_leaves_unwritten_is_kept(tmp_path, monkeypatch):
    plugin, original, last = WholeFileIO(), atomic.replace, tmp_path / "last"

    def full(path, content):
        raise UserError(f"cannot write {path}")

    monkeypatch.setattr(atomic, "replace", full)
    for write in (lambda: plugin.save_checkpoint({"step": 1}, last, Soon([last], [])), plugin.teardown):
        with pytest.raises(UserError):
            write()
    monkeypatch.setattr(atomic, "replace", original)
    plugin.teardown()
    assert torch.load(last, weights_only=True) == {"step": 1}


@pytest.mark.parametrize("written", [0, 1])
def test_a_disk_that_is_full_ends_the_run_with_its_name(written, tmp_path, monkeypatch):
    original, names = atomic.replace, []

    def full(path, content):
        names.append(path.name)
        if names.count("last.ckpt") > written:
            raise UserError(f"cannot write {path}: No space left on device")
        original(path, content)

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: No space left on device"):
        train(tmp_path, *FULL_BATCH)
    assert record(tmp_path)["status"] == "failed"
    monkeypatch.undo()
    assert resume(tmp_path)["status"] == "completed"


def test_a_checkpoint_of_an_older_version_has_its_best_score_in_that_of_lightning(tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1", "trainer.check_val_every_n_epoch=1")
    once = train(tmp_path / "once", *overrides, "trainer.max_epochs=60")
    early = once["best"]["step"] + 2
    train(tmp_path / "run", *overrides, f"trainer.max_epochs={early}")
    path = tmp_path / "run" / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    key = (
        "Checkpoint{'monitor': 'val/loss', 'mode': 'min', 'every_n_train_steps': 0, 'every_n_epochs': 1, "
        "'train_time_interval': None}"
    )
    checkpoint["callbacks"][key] |= {"monitor": "val/loss", "best_model_path": "best.ckpt", "best_k_models": {}}
    torch.save(checkpoint, path)
    assert resume(tmp_path / "run", "trainer.max_epochs=60")["best"] == once["best"]


def test_another_checkpoint_io_has_both_files_too(tmp_path):
    plugin = "{_target_: lightning.pytorch.plugins.io.TorchCheckpointIO}"
    result = train(tmp_path, *FULL_BATCH, f"trainer.plugins=[{plugin}]")
    steps = [
        torch.load(tmp_path / "checkpoints" / f"{k}.ckpt", weights_only=True)["global_step"] for k in ("best", "last")
    ]
    assert steps == [result["best"]["step"], result["steps"]]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("callbacks.best.monitor=nothing", "trainer: nothing is not measured; choose one of train/loss, val/loss"),
        ("callbacks.best.kind=worst", "callbacks.*kind must be best or last.*got kind=worst"),
        ("callbacks.best.mode=up", "callbacks.*mode min or max, got .*mode=up"),
    ],
)
def test_a_mistake_in_a_checkpoint_is_named(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tmp_path, override, *FULL_BATCH)


def test_a_profiler_of_ones_own_is_kept(tmp_path, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        train(tmp_path, *FULL_BATCH, "trainer.profiler=simple")
    assert "run_training_batch" in caplog.text


def test_early_stopping_ends_the_run_where_it_stopped(tmp_path):
    result = train(tmp_path, "callbacks=early_stopping", "callbacks.early_stopping.min_delta=0.001")
    assert result["status"] == "completed"
    assert result["steps"] < 500
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == result["steps"]


def test_a_second_signal_ends_the_run_at_once():
    with StopOnSignal() as stop:
        stop.training = True
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        with pytest.raises(Interrupted) as end:
            os.kill(os.getpid(), signal.SIGTERM)
    assert end.value.code == 143


def test_signals_are_given_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
