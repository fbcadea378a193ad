"""Checkpoints, the last step, signals and resume: a run that was killed gives the same bits as one that was not."""

import os
import random
import shutil
import signal
import threading
import warnings
from types import SimpleNamespace

import own
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from runs import record, resume, scalars, slow, train

from linear_lab import UserError
from linear_lab.fitting import callbacks
from linear_lab.fitting.callbacks import Interrupted, StopOnSignal
from linear_lab.runs import atomic
from linear_lab.runs.checkpoints import AtomicCheckpointIO, SaveCheckpoints
from linear_lab.tracking.tensorboard import RunLogger

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
    "accumulated gradients, validation within the step": (
        *MINI_BATCH,
        "trainer.accumulate_grad_batches=3",
        "trainer.val_check_interval=2",
        "trainer.check_val_every_n_epoch=1",
    ),
    "max_steps": (*MINI_BATCH, "trainer.max_steps=11"),
}


QUICK = ("adam, mini-batches", "plateau", "accumulated gradients, validation within the step")
INTERRUPTED = "an interrupted run is resumed by the same checkpoints; test_faults kills one"


class Killed(BaseException):
    """Simulates kill -9: no code runs after it."""


def run_until(folder, hook, step, action, overrides, monkeypatch):
    """Train, and call a function in a hook at a step."""

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
        train(folder, *overrides)


def kill(folder):
    raise Killed((folder / "result.json").read_text())


def assert_same(folder, reference):
    one, two = record(folder), record(reference)
    for key in ("status", "steps", "parameters", "metrics", "best", "initial", "first_step"):
        assert one.get(key) == two.get(key), key


@pytest.mark.parametrize(
    "variant",
    [*QUICK, *slow("each variant resumes by the same code", *(name for name in VARIANTS if name not in QUICK))],
)
@pytest.mark.parametrize("how", ["interrupted", *slow(INTERRUPTED, "killed", "killed before its checkpoint")])
def test_resumed_run_ends_with_the_same_bits(variant, how, once, tmp_path, monkeypatch):
    reference = once(f"whole, {variant}", lambda folder: train(folder, *VARIANTS[variant]))
    steps = record(reference)["steps"]
    for step in {steps, *random.Random(variant + how).sample(range(1, steps), 1)}:
        folder = tmp_path / str(step)
        hook = "on_validation_start" if how == "killed before its checkpoint" else "on_train_batch_end"
        action = (lambda _: os.kill(os.getpid(), signal.SIGINT)) if how == "interrupted" else kill
        try:
            quick = () if how == "interrupted" else ("logger=none",)  # test_faults checks events of killed runs
            run_until(folder, hook, step, action, (*VARIANTS[variant], *quick), monkeypatch)
        except Killed as killed:
            (folder / "result.json").write_text(str(killed))  # the record that kill -9 leaves
        except Interrupted:
            assert record(folder)["status"] == "interrupted"
        if record(folder)["status"] != "completed":
            resume(folder)
        assert_same(folder, reference)


@pytest.mark.parametrize("validation", ["0", *slow("validation draws no number", "true")])
@pytest.mark.parametrize("changed", ["trainer.max_steps", *slow("the other limit is quick", "trainer.max_epochs")])
def test_more_epochs_on_resume_equal_as_many_at_once(changed, validation, tmp_path):
    overrides = (*MINI_BATCH[:-2], "trainer.check_val_every_n_epoch=5", "optimizer=adam", "scheduler=step")
    overrides += ("trainer.limit_val_batches=0",) if validation == "0" else ()
    once = train(tmp_path / "once", *overrides, "trainer.max_epochs=12")
    folder = tmp_path / "twice"
    train(folder, *overrides, "trainer.max_epochs=12", f"{changed}=7")
    twice = resume(folder, "trainer.max_epochs=12", "trainer.max_steps=-1")
    assert twice["steps"] == once["steps"] == 36
    assert twice["parameters"] == once["parameters"]
    again = resume(folder)  # nothing is left to train, and nothing changes
    assert {k: again[k] for k in ("steps", "metrics", "best")} == {k: twice[k] for k in ("steps", "metrics", "best")}


@pytest.mark.parametrize("epochs", [3, 7])  # after 7 epochs a validation is due anyway
def test_a_resumed_run_keeps_counting_batches_across_epochs(epochs, tmp_path):
    given = ("data=synthetic", "data.samples=20", "data.features=8", "data.noise=3", "data.batch_size=3")
    given += ("optimizer.lr=0.01", "trainer.val_check_interval=7", "trainer.check_val_every_n_epoch=null")
    train(tmp_path / "once", *given, "trainer.max_epochs=40")
    train(tmp_path / "twice", *given, f"trainer.max_epochs={epochs}")
    resume(tmp_path / "twice", "trainer.max_epochs=40")
    assert_same(tmp_path / "twice", tmp_path / "once")
    once, twice = ({step for step, _ in scalars(tmp_path / kind)["val/loss"]} for kind in ("once", "twice"))
    assert twice >= once


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
def test_curves_start_with_the_initial_and_end_with_the_final_model(overrides, steps, tmp_path):
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


@pytest.mark.slow("like test_a_run_leaves_no_file_open")
def test_max_time_ends_with_the_final_model_too(tmp_path):
    result = train(tmp_path, "trainer.max_epochs=-1", "trainer.max_time=00:00:00:01")
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == result["steps"] > 0
    assert scalars(tmp_path)["val/loss"][-1][0] == result["steps"]


def test_a_resumed_cosine_schedule_keeps_its_length(tmp_path):
    train(tmp_path, "scheduler=cosine", "trainer.max_epochs=6")
    resume(tmp_path, "trainer.max_epochs=9")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["lr_schedulers"][0]["T_max"] == 6
    assert "T_max: 6" in (tmp_path / ".hydra" / "config.yaml").read_text()


@pytest.mark.slow("like test_the_best_value_is_that_of_the_best_checkpoint")
def test_best_checkpoint_has_the_lowest_val_loss(tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1", "trainer.max_epochs=60", "trainer.check_val_every_n_epoch=1")
    result = train(tmp_path, *overrides)
    curve = scalars(tmp_path)["val/loss"][1:]
    best_step, best_loss = min(curve, key=lambda point: point[1])
    assert result["best"]["step"] == best_step < 60
    assert result["best"]["metrics"]["val/loss"] == pytest.approx(best_loss)
    best = torch.load(tmp_path / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["state_dict"]["network.bias"].tolist() == result["best"]["parameters"]["bias"]


@pytest.mark.slow("like test_a_resumed_run_logs_the_rates_of_its_schedule")
def test_the_best_score_outlives_a_move_of_the_folder(tmp_path):
    overrides = ("optimizer=adam", "optimizer.lr=1", "trainer.check_val_every_n_epoch=1")
    once = train(tmp_path / "once", *overrides, "trainer.max_epochs=60")
    early = once["best"]["step"] + 2
    train(tmp_path / "here", *overrides, f"trainer.max_epochs={early}")
    shutil.move(tmp_path / "here", tmp_path / "there")
    moved = resume(tmp_path / "there", "trainer.max_epochs=60")
    assert moved["best"] == once["best"]
    assert not (tmp_path / "here").exists()


def test_best_is_written_before_last_and_after_the_curves(tmp_path, monkeypatch):
    written, save, replace = [], SaveCheckpoints.on_validation_end, atomic.replace
    monkeypatch.setattr(RunLogger, "save", lambda _: written.append("curves"))
    monkeypatch.setattr(
        atomic, "replace", lambda path, *given, **named: (written.append(path.name), replace(path, *given, **named))
    )
    monkeypatch.setattr(SaveCheckpoints, "on_validation_end", lambda *given: (written.clear(), save(*given)))
    train(tmp_path, *FULL_BATCH, "logger=tensorboard", "logger.tensorboard.pictures=false")
    assert written[:3] == ["curves", "best.ckpt", "last.ckpt"]
    best, last = (torch.load(tmp_path / "checkpoints" / f"{k}.ckpt", weights_only=True) for k in ("best", "last"))
    assert best["global_step"] == last["global_step"] == 7
    assert torch.equal(best["state_dict"]["network.weight"], last["state_dict"]["network.weight"])


def test_a_checkpoint_is_replaced_whole_or_not_at_all(tmp_path, quota):
    plugin, last = AtomicCheckpointIO(), tmp_path / "checkpoints" / "last.ckpt"
    plugin.save_checkpoint({"step": 1}, last)
    quota(20)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: File too large"):
        plugin.save_checkpoint({"step": 2}, last)
    assert torch.load(last, weights_only=True) == {"step": 1}
    assert [path.name for path in last.parent.iterdir()] == ["last.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        plugin.save_checkpoint({"step": 2}, last, {})


@pytest.mark.parametrize("written", [0, 1])
def test_a_full_disk_ends_the_run_and_the_error_names_the_file(written, tmp_path, monkeypatch):
    original, names = atomic.replace, []

    def full(path, content, **named):
        names.append(path.name)
        if names.count("last.ckpt") > written:
            raise UserError(f"cannot write {path}: No space left on device")
        original(path, content, **named)

    monkeypatch.setattr(atomic, "replace", full)
    with pytest.raises(UserError, match=r"cannot write .*last\.ckpt: No space left on device"):
        train(tmp_path, *FULL_BATCH)
    assert record(tmp_path)["status"] == "failed"
    monkeypatch.undo()
    assert resume(tmp_path)["status"] == "completed"


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
        (
            "callbacks.checkpoints.monitor=nothing",
            "callbacks.checkpoints.monitor=nothing is not measured; choose one of train/loss, val/loss, as in",
        ),
        ("callbacks.checkpoints.mode=up", "callbacks.*mode must be min or max, got up"),
    ],
)
def test_a_mistake_in_a_checkpoint_is_named(override, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(tmp_path, override, *FULL_BATCH)


def test_a_profiler_of_the_user_is_used(tmp_path, caplog):
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


def test_signal_handlers_are_restored():
    before = signal.getsignal(signal.SIGTERM)
    with StopOnSignal():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


EARLY = ("callbacks=early_stopping", "trainer.check_val_every_n_epoch=1", "logger=none", "optimizer.lr=0.05")


@pytest.mark.parametrize(("epochs", "every"), [(2, 1), (7, 3)])
def test_early_stopping_goes_on_as_in_one_run(epochs, every, tmp_path):
    given = (*EARLY[:1], *EARLY[2:], f"trainer.check_val_every_n_epoch={every}", "callbacks.early_stopping.min_delta=5")
    given += ("callbacks.early_stopping.patience=3",)  # the loss soon changes by less than 5
    once = train(tmp_path / "once", *given, "trainer.max_epochs=30")
    assert epochs < once["steps"] < 30
    train(tmp_path / "twice", *given, f"trainer.max_epochs={epochs}")
    twice = resume(tmp_path / "twice", "trainer.max_epochs=30")
    assert (twice["steps"], twice["parameters"]) == (once["steps"], once["parameters"])


def test_a_run_that_early_stopping_ended_stays_ended_and_says_so(tmp_path, caplog, capsys):
    once = train(tmp_path, *EARLY, "callbacks.early_stopping.min_delta=5", "callbacks.early_stopping.patience=3")
    out = capsys.readouterr().out
    again = resume(tmp_path, "trainer.max_epochs=1000")
    assert (again["steps"], again["parameters"]) == (once["steps"], once["parameters"])
    assert (
        "early stopping has ended the run; to train on, set a larger callbacks.early_stopping.patience" in caplog.text
    )
    assert resume(tmp_path, "callbacks.early_stopping.patience=6")["steps"] == once["steps"] + 3
    assert "early stopping ended the run: callbacks.early_stopping.patience is 3 validations" in out
    assert "callbacks.early_stopping.patience=<more>" in out
    assert "trainer.max_epochs=<more>" not in out


@pytest.mark.parametrize(
    ("first", "warning"),
    [
        (["trainer.max_epochs=-1", "trainer.max_time=00:00:00:01"],
         "the run has used up trainer.max_time=00:00:00:01; to train on, try trainer.max_time=null"),
        (["trainer.max_epochs=3"], "the run has reached trainer.max_epochs=3; to train on, set a larger value"),
        (["trainer.max_steps=3"], "the run has reached trainer.max_steps=3; to train on, set a larger value"),
    ],
)  # fmt: skip
def test_a_run_that_has_nothing_left_to_train_says_why(first, warning, tmp_path, caplog):
    once = train(tmp_path, *first, "logger=none")
    again = resume(tmp_path)
    assert (again["steps"], again["metrics"]) == (once["steps"], once["metrics"])
    assert warning in caplog.text


@pytest.mark.parametrize("scheduler", ["scheduler.patience=0", "scheduler.patience=2"])
@pytest.mark.parametrize(("changed", "cut"), [("max_epochs", 7), ("max_epochs", 8), ("max_steps", 19)])
@pytest.mark.slow("like test_resumed_run_ends_with_the_same_bits")
def test_plateau_of_a_resumed_run_equals_that_of_one_run(scheduler, changed, cut, tmp_path):
    given = (*MINI_BATCH[:-2], "trainer.check_val_every_n_epoch=3", "scheduler=plateau", scheduler, "loss=mae")
    given += ("optimizer.lr=2", "logger=none")
    once = train(tmp_path / "once", *given, "trainer.max_epochs=14")
    train(tmp_path / "twice", *given, "trainer.max_epochs=14", f"trainer.{changed}={cut}")
    twice = resume(tmp_path / "twice", "trainer.max_epochs=14", "trainer.max_steps=-1")
    assert (twice["steps"], twice["parameters"]) == (once["steps"], once["parameters"])


def test_a_sharded_checkpoint_is_saved_twice(tmp_path):
    """Some strategies write a folder, which cannot be copied as a file can."""
    saved = []
    trainer = SimpleNamespace(
        fast_dev_run=False, global_step=3, default_root_dir=tmp_path, loggers=[],
        callback_metrics={"val/loss": torch.tensor(1.0)},
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision: decision),
        save_checkpoint=lambda path, weights_only: (saved.append(path.name), path.mkdir(parents=True)),
    )  # fmt: skip
    SaveCheckpoints(monitor="val/loss").save(trainer)
    assert saved == ["best.ckpt", "last.ckpt"]
    assert (tmp_path / "checkpoints" / "last.ckpt").is_dir()


def test_a_thread_leaves_the_signals_to_the_main_thread():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def enter():
        with StopOnSignal() as stop:
            seen.append((stop.handlers, signal.getsignal(signal.SIGTERM)))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [({}, before)]


@pytest.mark.parametrize(("within", "step"), [(True, 11), (False, 8)])
def test_a_run_that_cannot_go_on_within_an_epoch_names_its_last_checkpoint(within, step, monkeypatch, tmp_path):
    monkeypatch.setattr(callbacks, "goes_on_within_epochs", lambda _: within)
    saved, written = SaveCheckpoints(monitor="val/loss"), []
    saved.step = 8
    trainer = SimpleNamespace(
        global_step=11, checkpoint_callbacks=[saved], default_root_dir=tmp_path,
        strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        save_checkpoint=lambda path, weights_only: written.append(path.name),
    )  # fmt: skip
    stop = StopOnSignal()
    stop.on_train_epoch_start(trainer, None)
    stop.signum = signal.SIGINT
    with pytest.raises(Interrupted) as end:
        stop.on_train_epoch_start(trainer, None)
    assert (end.value.code, stop.step, written) == (130, step, ["last.ckpt"] if within else [])


def test_a_hopeless_run_without_validation_stops_after_an_epoch():
    seen = []
    stop = callbacks.StopIfHopeless("train_loss", lambda epoch, value: seen.append(epoch) or epoch == 2)
    options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = Trainer(max_epochs=5, callbacks=[stop], enable_checkpointing=False, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Lightning: few workers
        trainer.fit(own.TrainingAlone(), own.WithoutValidation())
    assert (seen, trainer.current_epoch) == ([1, 2], 2)


def test_a_hopeless_run_that_is_resumed_stops_at_once():
    for hopeless in (True, False):
        killed, resumed = (callbacks.StopIfHopeless("val/loss", None) for _ in range(2))
        killed.hopeless, trainer = hopeless, SimpleNamespace(should_stop=False)
        resumed.load_state_dict(killed.state_dict())
        resumed.on_train_start(trainer, None)
        assert trainer.should_stop == hopeless


def test_early_stopping_needs_a_metric(tmp_path):
    with pytest.raises(UserError, match=r"callbacks\.early_stopping\.monitor=null: early stopping needs a metric"):
        train(tmp_path, "callbacks=early_stopping", "callbacks.early_stopping.monitor=null")
