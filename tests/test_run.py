"""A run from config to result, its errors, and evaluate."""

import json
import os
import re
import shutil
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from hydra.errors import InstantiationException
from lightning.pytorch import Callback
from omegaconf import OmegaConf
from runs import command, compose, record, resume, slow, train
from torch import nn

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.fitting import build, run
from linear_lab.fitting.checks import check, user_errors
from linear_lab.inference.remeasure import evaluate
from linear_lab.models import LinearModule, SupervisedModule

SHORT = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")


def test_the_default_run_learns_the_line(finished):
    result = record(finished)
    assert result["status"] == "completed"
    assert result["metrics"]["train/loss"] < 1e-6
    assert result["parameters"]["weight"][0][0] == pytest.approx(2, abs=1e-4)
    assert result["parameters"]["bias"][0] == pytest.approx(0, abs=1e-3)
    assert (result["steps"], result["seed"], result["error"]) == (500, 0, None)
    assert result["seconds"] > 0
    assert set(result["versions"]) == {"linear_lab", "python", "torch", "lightning", "hydra-core"}
    assert set(result["metrics"]) == {"train/loss", "val/loss", "test/loss"}
    assert {"initial", "parameters", "best", "config_hash", "git", "first_step"} <= set(result)


def test_autograd_by_hand(tmp_path):
    result = train(tmp_path, "experiment=autograd")
    assert result["initial"]["weight"] == [[1.0]]
    assert result["first_step"] == {"loss": 1.0, "gradient": {"weight": [[-2.0]]}}
    assert result["steps"] == 1
    assert result["parameters"] == {"weight": [[pytest.approx(1.2)]], "bias": None}


def test_no_training_leaves_the_given_line(tmp_path):
    weight, bias = 0.5636951923370361, 0.46575701236724854
    result = train(tmp_path, f"model.weight={weight}", f"model.bias={bias}", "trainer.max_epochs=0")
    assert result["parameters"] == {"weight": [[weight]], "bias": [bias]}
    assert result["status"] == "completed"
    assert evaluate(str(tmp_path), "last") == result["metrics"]


def test_seed_zero_is_a_seed(tmp_path):
    one, two, other = (train(tmp_path / str(k), f"seed={k // 2}", *SHORT) for k in (0, 1, 2))
    assert one["initial"] == two["initial"] != other["initial"]
    assert one["seed"] == 0


def test_a_job_alone_equals_the_job_in_a_sweep(tmp_path):
    job = ("data=synthetic", "data.batch_size=32", "optimizer=adam", *SHORT)
    alone = train(tmp_path / "alone", *job)
    train(tmp_path / "before", "seed=5", "trainer.deterministic=true", "data.batch_size=1", *SHORT)
    torch.rand(3)
    later = train(tmp_path / "later", *job)
    assert {**alone, "seconds": 0} == {**later, "seconds": 0}


def test_the_process_is_left_as_it_was(tmp_path):
    before = sys.argv, dict(os.environ), torch.get_rng_state()
    train(tmp_path, "trainer.deterministic=true", *SHORT)
    assert (sys.argv, dict(os.environ)) == before[:2]
    assert torch.equal(torch.get_rng_state(), before[2])
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("which", ["best", "last"])
def test_evaluate_returns_what_the_run_recorded(which, tmp_path, capsys):
    result = train(tmp_path, "data=synthetic", "data.batch_size=32", "optimizer=adam", "optimizer.lr=1", *SHORT)
    metrics = evaluate(str(tmp_path), which)
    assert metrics == (result["best"] if which == "best" else result)["metrics"]
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("train/loss", "val/loss", "test/loss", "recorded"))


def test_evaluate_keeps_every_digit_of_float64(tmp_path):
    result = train(tmp_path, "data=synthetic", "data.features=3", "trainer.precision=64-true", *SHORT)
    assert evaluate(str(tmp_path), "last") == result["metrics"]


class MLP(SupervisedModule):
    """A network that the user has defined."""

    def __init__(self, in_features, out_features, bias=True, weight=None, **training):
        super().__init__(nn.Sequential(nn.Linear(in_features, 8), nn.Tanh(), nn.Linear(8, out_features)), **training)


def test_a_module_of_the_user(tmp_path, capsys):
    result = train(tmp_path, f"model._target_={__name__}.MLP", "console.steps=2", *SHORT)
    assert result["status"] == "completed"
    assert result["parameters"]["0.weight"] != result["initial"]["0.weight"]
    assert evaluate(str(tmp_path), "last", trust=f"{__name__}.MLP") == result["metrics"]
    assert "MLP, 25 parameters" in capsys.readouterr().out


@pytest.mark.parametrize(("cut", "left"), [("best", "last"), ("last", "best")])
def test_a_checkpoint_cut_in_half_is_replaced_by_the_other_one(cut, left, tmp_path, finished, caplog):
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "checkpoints" / f"{cut}.ckpt"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    expected = record(folder)["best"] if left == "best" else record(folder)
    assert evaluate(str(folder), cut) == expected["metrics"]
    assert f"{cut}.ckpt" in caplog.text
    assert f"taking {folder}/checkpoints/{left}.ckpt instead" in caplog.text


@pytest.mark.slow("like test_an_old_run_with_a_single_logger_spec_is_resumed")
def test_a_run_resumes_from_the_other_checkpoint_too(tmp_path):
    overrides = ("trainer.max_epochs=40", "optimizer.lr=0.02")
    expected = train(tmp_path / "whole", *overrides)
    folder = tmp_path / "cut"
    train(folder, *overrides)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"half")
    assert resume(folder)["parameters"] == expected["parameters"]
    assert best["global_step"] == 40
    (folder / "checkpoints" / "best.ckpt").write_bytes(b"half")
    assert resume(folder)["status"] == "completed"


def no_checkpoint(kind, path):
    """Write a file that is not a checkpoint of a run in place of a checkpoint."""
    step = {"global_step": 500, "pytorch-lightning_version": "2.0"}
    if kind == "empty":
        path.write_bytes(b"")
    else:
        torch.save({"list": [], "without weights": step, "no version": step | {"state_dict": {}}}[kind], path)
        if kind == "no version":
            torch.save(step | {"state_dict": {}, "pytorch-lightning_version": 2}, path)


@pytest.mark.parametrize("kind", ["empty", *slow("one kind is quick", "list", "without weights", "no version")])
@pytest.mark.parametrize(("lost", "left"), [("best", "last"), ("last", "best")])
def test_the_other_checkpoint_replaces_a_file_that_is_not_one(lost, left, kind, tmp_path, finished, caplog):
    folder = shutil.copytree(finished, tmp_path / "run")
    no_checkpoint(kind, folder / "checkpoints" / f"{lost}.ckpt")
    evaluate(str(folder), lost)
    assert f"cannot read {folder}/checkpoints/{lost}.ckpt" in caplog.text
    assert "weights_only" not in caplog.text  # PyTorch's text advises to switch it off
    assert resume(folder, "trainer.max_epochs=501")["steps"] == 501
    for name in ("best", "last"):
        no_checkpoint(kind, folder / "checkpoints" / f"{name}.ckpt")
    before = record(folder)
    for refused in (lambda: evaluate(str(folder), lost), lambda: resume(folder, "trainer.max_epochs=502")):
        with pytest.raises(UserError, match=r"cannot read .*best\.ckpt.*delete the checkpoints"):
            refused()
    assert record(folder) == before


ODD = {  # the key of a checkpoint that is replaced, and its new value; None removes the key
    "no weights": ("state_dict", {}),
    "a number for weights": ("state_dict", 3),
    "weights of text": ("state_dict", {"network.weight": "x"}),
    "a step of text": ("global_step", "5"),
    "no loops": ("loops", {}),
    **{f"without {key}": (key, None) for key in ("hyper_parameters", "loops", "optimizer_states", "callbacks")},
}


def with_odd_content(run, folder, key, value, names=("best", "last")):
    shutil.copytree(run, folder)
    for path in (folder / "checkpoints" / f"{name}.ckpt" for name in names):
        checkpoint = torch.load(path, weights_only=True)
        content = {name: kept for name, kept in checkpoint.items() if name != key}
        torch.save(content if value is None else content | {key: value}, path)
    return folder


@pytest.mark.parametrize(
    "odd", [*[*ODD][::4], *slow("like the others", *(name for name in ODD if name not in [*ODD][::4]))]
)
def test_a_checkpoint_of_odd_content_is_replaced_by_the_other_one(odd, tmp_path, finished, caplog):
    folder = with_odd_content(finished, tmp_path / "run", *ODD[odd], ["last"])
    assert resume(folder, "trainer.max_epochs=501")["steps"] == 501
    assert f"cannot read {folder}/checkpoints/last.ckpt" in caplog.text


@pytest.mark.parametrize("weights", [{"network.weight": torch.ones(1, 1)}, {"network.weight": torch.ones(1, 2)}])
def test_weights_of_another_model_are_refused(weights, tmp_path, finished):
    folder = with_odd_content(finished, tmp_path / "run", "state_dict", weights)
    for refused in (lambda: evaluate(str(folder)), lambda: resume(folder, "trainer.max_epochs=502")):
        with pytest.raises(UserError, match="weights of another model; delete the checkpoints"):
            refused()


def test_a_best_score_that_is_no_number_is_refused(tmp_path, finished):
    folder = with_odd_content(finished, tmp_path / "run", "callbacks", {"SaveCheckpoints": {"best": "x"}})
    with pytest.raises(UserError, match="the best val/loss in the checkpoint is not a number"):
        resume(folder, "trainer.max_epochs=502")


def test_an_error_says_that_no_checkpoint_is_readable(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    for name in ("best", "last"):
        (folder / "checkpoints" / f"{name}.ckpt").write_bytes(b"half")
    with pytest.raises(UserError, match=r"cannot read .*best\.ckpt.*last\.ckpt.*delete the checkpoints"):
        evaluate(str(folder))
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(str(folder))


def test_a_checkpoint_of_a_newer_lightning_is_refused(tmp_path, finished):
    folder = shutil.copytree(finished, tmp_path / "run")
    path = folder / "checkpoints" / "best.ckpt"
    torch.save(torch.load(path, weights_only=True) | {"pytorch-lightning_version": "99.1"}, path)
    with pytest.raises(UserError, match=r"a newer lightning, 99\.1, wrote it; update"):
        evaluate(str(folder))


def test_evaluate_refuses_wrong_arguments(finished, tmp_path):
    with pytest.raises(UserError, match="checkpoint=worst: choose checkpoint=best or"):
        evaluate(str(finished), "worst")
    with pytest.raises(UserError, match="there is no such folder"):
        evaluate(str(tmp_path / "none"))
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="finds no GPU"):
            evaluate(str(finished), accelerator="gpu")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["optimizer.lr=-1"], "optimizer: lr must be a positive number, got -1; try optimizer.lr=0.01"),
        (
            ["optimizer.momentum=-1"],
            "optimizer: momentum must be a number from 0 to below 1, got -1; try optimizer.mom",
        ),
        (["optimizer.momentum=2"], "optimizer: momentum must be a number from 0 to below 1, got 2"),
        (["optimizer.momentum=nan"], "optimizer: momentum must be a number from 0 to below 1, got nan"),
        (
            ["optimizer=rmsprop", "optimizer.momentum=1"],
            "optimizer: momentum must be a number from 0 to below 1, got 1",
        ),
        (["optimizer=rmsprop", "optimizer.alpha=2"], "optimizer: alpha must be a number from 0 to 1, got 2"),
        (
            ["optimizer=adam", "optimizer.weight_decay=inf"],
            "optimizer: weight_decay must be a number of at least 0, got inf",
        ),
        (
            ["optimizer=adam", "optimizer.betas=[0.9]"],
            r"optimizer: betas must be two numbers, got \[0.9\]; try optimizer.betas",
        ),
        (["optimizer=adam", "optimizer.betas=0.9"], "optimizer: betas must be two numbers, got 0.9"),
        (
            ["optimizer=adam", "optimizer.betas=[0.9,1]"],
            r"optimizer: betas.1 must be a number from 0 to below 1, got 1; try optimizer.betas=\[0.9,0.999",
        ),
        (["optimizer=adam", "optimizer.betas=[0.9,x]"], "optimizer: betas.1 must be a number .* got the text 'x'"),
        (["optimizer.lr='0.1'"], "optimizer: lr must be a positive number, got the text '0.1'; try optimizer.lr=0.01"),
        (["optimizer.weight_decay='0'"], "weight_decay must be a number of at least 0, got the text '0'"),
        (["seed='1'"], "seed must be a whole number from 0 to 4294967295, got the text '1'"),
        (
            ["scheduler=plateau", "scheduler.patience=x"],
            "scheduler.patience must be a whole number from 0.*got the text 'x'",
        ),
        (["scheduler=plateau", "scheduler.patience=-1"], "scheduler.patience must be a whole number from 0.*got -1"),
        (["scheduler=plateau", "scheduler.patience=1.5"], "scheduler.patience must be a whole number from 0.*got 1.5"),
        (["scheduler=plateau", "scheduler.factor=-1"], "scheduler: factor must be a number from 0 to 1, got -1"),
        (["scheduler=step", "scheduler.gamma=-1"], "scheduler: gamma must be a positive number, got -1"),
        (["scheduler=step", "scheduler.gamma=x"], "scheduler: gamma must be a positive number, got the text 'x'"),
        (["scheduler=cosine", "scheduler.eta_min=-1"], "scheduler: eta_min must be a number of at least 0, got -1"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.patience=-1"],
            "early_stopping.patience must be a whole n",
        ),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=foo"],
            "early_stopping.monitor=foo is not meas",
        ),
        (["trainer.gradient_clip_val=-1"], "trainer: gradient_clip_val must be a number of at least 0, got -1"),
        (
            ["trainer.gradient_clip_val=x"],
            "trainer: gradient_clip_val must be a number of at least 0, got the text 'x'",
        ),
        (
            ["trainer.limit_train_batches=0"],
            "trainer.limit_train_batches=0 leaves nothing to train on; .*max_epochs=0",
        ),
        (["trainer.limit_train_batches=0.0"], "trainer.limit_train_batches=0.0 leaves nothing to train on"),
        (
            ["trainer.overfit_batches=0.01"],
            "trainer.overfit_batches=0.01 is less than one batch, .*overfit_batches=1",
        ),
        (
            ["optimizer=lbfgs", "data=synthetic", "data.batch_size=100", "trainer.accumulate_grad_batches=7"],
            "optimizer: LBFGS evaluates .* leave out trainer.accumulate_grad_batches=7 or data.batch_size=100",
        ),
        (["+optimizer.speed=9"], "optimizer: .*unexpected keyword argument 'speed'"),
        (["optimizer._target_=torch.optim.Nothing"], "optimizer: .*torch.optim.Nothing"),
        (["optimizer._target_=os.system"], "optimizer: .*os.system"),
        (
            ["scheduler=plateau", "scheduler.factor=2"],
            "scheduler: factor must be a number from 0 to 1, got 2; try scheduler.factor=0.5",
        ),
        (["loss._target_=torch.optim.SGD"], "model: torch.optim.SGD is not a subclass of Module"),
        (["loss=huber", "loss.delta=-1"], "delta"),
        (["data.batch_size=0"], "data: batch_size must be a whole number of at least 1"),
        (["data=synthetic", "data.samples=0"], "data: samples must be a whole number of at least 1, got 0"),
        (["model.weight=[[1,2]]"], r"model: weight has shape \(1, 2\), but the data need \(1, 1\)"),
        (["model.bias=[1,2]"], "model: bias has shape"),
        (["seed=-1"], "seed must be a whole number from 0 to 4294967295, got -1"),
        (["seed=null"], "seed must be"),
        (["seed=true"], "seed must be.*got True"),
        (["console.steps=-1"], "console.steps must be"),
        (["data.order_seed=-5"], "data: order_seed must be a whole number"),
        (["data.train=null"], "data: train must be points"),
        (["data.batch_size=true"], "data: batch_size.*got True"),
        (["model.weight=abc"], "model: weight must be a number.*got abc"),
        (["model.bias=null"], "model: bias must be a number"),
        (["+loss.reduction=sum"], "model: loss.reduction must be mean.*got sum"),
        (["scheduler=step", "scheduler.step_size=0"], "scheduler.step_size must be a whole number from 1.*got 0"),
        (["scheduler=cosine", "trainer.max_epochs=-1"], "scheduler.T_max must be"),
        (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch must be"),
        (["trainer.val_check_interval=7"], "trainer: .*val_check_interval"),
        (["~optimizer"], "optimizer: missing"),
        (
            ["data._target_=lightning.pytorch.LightningDataModule"],
            "needs in_features, which LightningDataModule does not define",
        ),
        (["metric=val/accuracy"], "metric=val/accuracy.*train/loss"),
        (
            ["metric=test/loss"],
            "metric=test/loss is not measured in training; choose one of train/loss, val/loss, as in",
        ),
        (
            ["loss=cross_entropy"],
            "loss: CrossEntropyLoss needs class labels, but ToyData has numbers in y; choose loss=mse",
        ),
        (
            ["data=toy_classes"],
            r"loss: MSELoss needs numbers, but ToyClasses has class labels \(A, B, C\); choose loss=",
        ),
        (["data=toy_classes", "data.classes=1"], "data: classes must be a whole number of at least 2, got 1"),
        (["data=table"], "data: path is missing: name a CSV or Parquet file"),
        (["data=table", "data.path=no.csv", "data.y=c"], r"data: path=.*no\.csv: the file is not there"),
        (["mode=max"], "mode=max would select the worst val/loss; choose mode=min"),
        (["data._target_=builtins.dict"], "data._target_=builtins.dict is not a LightningDataModule; name a sub"),
        (
            ["ckpt_path=x", "model.weight=0"],
            "model.weight=0 model.bias=True: ckpt_path sets the weights; leave",
        ),
        (["+model.in_features=2"], "model.in_features=2: the run sets it; leave it out"),
        (["model._target_=torch.nn.Linear"], "model._target_=torch.nn.Linear is not a LightningModule; name a sub"),
        (["optimum=maybe"], "optimum must be true or false, got maybe"),
        (
            ["optimizer=lbfgs", "optimizer.max_iter=0"],
            "optimizer: max_iter must be a whole number of at least 1, got 0",
        ),
        (["optimizer=lbfgs", "optimizer.line_search_fn=foo"], "line_search_fn must be strong_wolfe or null, got foo"),
        (["trainer.precision=7"], "trainer: Precision 7 is invalid"),
        (["trainer.max_epochs=-2"], "trainer"),
        *[
            ([f"{group}._target_=null"], f"{group}._target_: missing from the config; a run needs")
            for group in ("optimizer", "loss", "data")
        ],
        (["scheduler=step", "scheduler.gamma=null"], "scheduler: gamma .* got None; try scheduler.gamma=0.5"),
        (["scheduler=step", "scheduler.step_size=null"], "scheduler.step_size .* got None; try scheduler.step_size"),
        (["scheduler=cosine", "scheduler.T_max=null"], "scheduler.T_max .* got None"),
        (["scheduler=cosine", "scheduler.eta_min=null"], "scheduler: eta_min .* got None"),
        (["scheduler=plateau", "scheduler.patience=null"], "scheduler.patience .* got None"),
        (["scheduler=plateau", "scheduler.min_lr=x"], "scheduler: min_lr .* got the text 'x'"),
        (["scheduler=plateau", "+scheduler.cooldown=x"], "scheduler.cooldown .* got the text 'x'"),
        (["scheduler=plateau", "+scheduler.threshold=x"], "scheduler: threshold .* got the text 'x'"),
        (["callbacks=early_stopping", "callbacks.early_stopping.patience=null"], "early_stopping.patience .* got None"),
        (["callbacks=early_stopping", "callbacks.early_stopping.min_delta=x"], "early_stopping.min_delta must be"),
        (["callbacks=early_stopping", "+callbacks.early_stopping.stopping_threshold=x"], "g.stopping_threshold must"),
        (["optimizer=lbfgs", "optimizer.tolerance_grad=x"], "optimizer: tolerance_grad .* got the text 'x'"),
        (["trainer.detect_anomaly=x"], "trainer.detect_anomaly must be true or false, got x"),
        (["trainer.num_sanity_val_steps=x"], "trainer.num_sanity_val_steps must be"),
        (["trainer.log_every_n_steps=x"], "trainer.log_every_n_steps must be"),
        (["trainer.max_time=5"], "trainer: .*Expected a string in the format DD:HH:MM:SS"),
        (["+callbacks.x=5"], "callbacks: Cannot instantiate config of type int"),
        (["+callbacks.x=[1]"], r"callbacks.x=\[1\] is not a callback"),
        (["+callbacks.x={_target_:torch.nn.MSELoss}"], "callbacks.x=.* is not a callback"),
        (["callbacks.checkpoints.mode=max"], "^mode=max would select the worst val/loss; choose mode=min"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.mode=max"],
            "^mode=max would select the worst val/loss; choose mode=min",
        ),
        (
            ["data=toy_classes", "loss=cross_entropy", "callbacks.checkpoints.monitor=train/accuracy"],
            "callbacks.checkpoints.mode=min would select the worst train/accuracy; choose .*mode=max",
        ),
        (["trainer.barebones=true"], "trainer"),
    ],
)
def test_a_mistake_is_named_and_recorded(overrides, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        train(tmp_path, *overrides)
    result = record(tmp_path)
    assert (result["status"], result["error"]) == ("failed", str(error.value))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.slow("like test_an_old_run_with_a_single_logger_spec_is_resumed")
def test_a_resumed_run_keeps_its_config(tmp_path):
    train(tmp_path, *SHORT)
    config, before = (tmp_path / ".hydra" / "config.yaml").read_text(), record(tmp_path)
    with pytest.raises(UserError, match=r"optimizer.lr=0.5 cannot change; trainer, callbacks and console can"):
        resume(tmp_path, "optimizer.lr=0.5")
    assert (tmp_path / ".hydra" / "config.yaml").read_text() == config
    assert record(tmp_path) == before
    result = resume(tmp_path, "trainer.max_epochs=4")
    assert (result["steps"], result["status"]) == (4, "completed")
    assert OmegaConf.load(tmp_path / ".hydra" / "config.yaml").trainer.max_epochs == 4


class NeedsPackage(Callback):
    def setup(self, trainer, pl_module, stage):
        raise ModuleNotFoundError("it requires a package")


def test_a_callback_that_needs_a_missing_package(tmp_path):
    with pytest.raises(UserError, match="trainer: it requires a package"):
        train(tmp_path, "+callbacks.x={_target_: test_run.NeedsPackage}", *SHORT)


def test_a_defect_keeps_its_traceback(tmp_path, monkeypatch):
    monkeypatch.setattr(run.report, "show_plan", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        train(tmp_path, *SHORT)
    assert "ZeroDivisionError" in record(tmp_path)["error"]


def test_a_defect_in_training_keeps_its_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise RuntimeError("a defect")

    monkeypatch.setattr(LinearModule, "training_step", broken)
    with pytest.raises(RuntimeError, match="a defect"):
        train(tmp_path, *SHORT)
    assert "RuntimeError" in record(tmp_path)["error"]


def test_evaluate_compares_with_a_record_of_the_same_step_alone(tmp_path, finished, capsys):
    folder = shutil.copytree(finished, tmp_path / "run")
    result = record(folder)
    old = {"steps": 3, "metrics": {"train/loss": 9.0}, "best": None}  # the record while a resumed run trains
    (folder / "result.json").write_text(json.dumps(result | old))
    evaluate(str(folder), "last")
    out = capsys.readouterr().out
    assert "differ from the recorded digits" not in out
    (folder / "result.json").write_text(json.dumps(result | old | {"steps": 500}))
    evaluate(str(folder), "last")
    assert "differ from the recorded digits: another device" in capsys.readouterr().out


def test_gpu_is_asked_for_with_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    given = {}

    def init(self, **arguments):
        given.update(arguments)
        self.callbacks = []

    monkeypatch.setattr("lightning.pytorch.Trainer.__init__", init)
    cfg = compose("trainer=gpu", "trainer.devices=2", "trainer.precision=bf16-mixed")
    check(cfg)
    build.build_trainer(cfg, Path("here"), [], [])
    assert (given["accelerator"], given["devices"], given["precision"]) == ("gpu", 2, "bf16-mixed")


@pytest.mark.parametrize(
    ("accelerator", "devices", "message"),
    [
        ("gpu", 2, "trainer.devices=2: PyTorch finds 1 GPU, and each process needs one; run with trainer.devices=1"),
        ("auto", 3, "trainer.devices=3: PyTorch finds 1 GPU, and each process needs one; run with trainer.devices=1"),
        ("gpu", 1, None),
        ("gpu", [0, 1], None),  # Lightning names the indices that do not exist
        ("cpu", 2, None),
    ],
)
def test_more_processes_than_gpus_are_refused(accelerator, devices, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    cfg = compose(f"trainer.accelerator={accelerator}", f"trainer.devices={devices}")
    with pytest.raises(UserError, match=re.escape(message)) if message else nullcontext():
        check(cfg)


def test_result_is_strict_json(finished):
    json.loads((finished / "result.json").read_text(), parse_constant=pytest.fail)


QUICK = ("fewer steps", "an unknown metric")
RESUMED = {  # a run of five epochs, and a resume that fails before its first step
    "a scheduler that ends before": (
        ["scheduler=step", "scheduler._target_=torch.optim.lr_scheduler.OneCycleLR", "~scheduler.gamma",
         "~scheduler.step_size", "+scheduler.max_lr=0.1", "+scheduler.total_steps=5"],
        ["trainer.max_epochs=10"], "scheduler: total_steps=5 ends before trainer.max_epochs=10",
    ),
    "a dry run": ([], ["trainer.fast_dev_run=true"], "trainer.fast_dev_run=True .*leave it out"),
    "a rare validation": ([], ["trainer.val_check_interval=7", "trainer.max_epochs=9"], "trainer: .*val_check_inter"),
    "fewer epochs": ([], ["trainer.max_epochs=3"], "trainer.max_epochs=3: .* has reached epoch 5"),
    "one epoch fewer": ([], ["trainer.max_epochs=4"], "trainer.max_epochs=4: .* has reached epoch 5"),
    "fewer steps": ([], ["trainer.max_steps=4"], "trainer.max_steps=4: .* has reached step 5"),
    "an unknown metric": (
        ["callbacks=early_stopping"], ["callbacks.early_stopping.monitor=foo", "trainer.max_epochs=9"],
        "callbacks.early_stopping.monitor=foo .*train/loss, val/loss",
    ),
    "an unknown profiler": ([], ["trainer.profiler=foo", "trainer.max_epochs=9"], "trainer: "),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using")
@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("fewer steps", "completed"),
        ("an unknown metric", "completed"),
        ("a rare validation", "running"),
        *slow("three cases are quick", *((case, "completed") for case in RESUMED if case not in QUICK), several=True),
    ],
)
def test_a_resume_that_fails_before_its_first_step_changes_nothing(case, status, tmp_path):
    first, changed, message = RESUMED[case]
    train(tmp_path, *first, "trainer.max_epochs=5", "logger=tensorboard", "logger.tensorboard.pictures=false")
    result = tmp_path / "result.json"
    result.write_text(result.read_text().replace("completed", status))  # a killed run has the status running
    kept = [tmp_path / "result.json", *tmp_path.glob("**/*.ckpt"), *tmp_path.glob(".hydra/*"), *tmp_path.glob("*.end")]
    before = {path: path.read_bytes() for path in kept}
    with pytest.raises(UserError, match=message):
        resume(tmp_path, *changed)
    assert {path: path.read_bytes() for path in kept} == before
    assert len(list(tmp_path.glob("*.end"))) == 1
    assert resume(tmp_path)["status"] == "completed"


def test_null_means_the_default_of_the_trainer(tmp_path):
    keys = (
        "accumulate_grad_batches",
        "max_steps",
        "overfit_batches",
        "devices",
        "strategy",
        "accelerator",
        "num_nodes",
    )
    nulls = [f"trainer.{key}=null" for key in keys]
    plain, defaults = (train(tmp_path / str(len(typed)), "trainer.max_epochs=2", *typed) for typed in ([], nulls))
    assert defaults["metrics"] == plain["metrics"]


def test_the_error_for_a_missing_class_has_one_line():
    with pytest.raises(UserError) as refused, user_errors("optimizer"):
        raise ModuleNotFoundError("no module x\nAre you sure that it is installed?")
    assert str(refused.value) == "optimizer: no module x"


@pytest.mark.slow("like test_an_old_run_with_a_single_logger_spec_is_resumed")
def test_a_run_starts_from_the_weights_of_a_checkpoint(tmp_path):
    first = train(tmp_path / "first", *SHORT)
    checkpoint = tmp_path / "first" / "checkpoints" / "last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    other = ("optimizer=adam", "data.batch_size=2", "seed=5")  # these change no weight
    second = train(tmp_path / "second", f"ckpt_path={checkpoint}", *other, *SHORT)
    assert second["initial"]["weight"] == state["network.weight"].tolist() == first["parameters"]["weight"]
    assert second["initial"]["train/loss"] == first["metrics"]["train/loss"]
    assert second["steps"] == 6  # counted anew
    checkpoint.rename(tmp_path / "elsewhere")
    assert evaluate(str(tmp_path / "second"), "last") == second["metrics"]  # the file is no longer needed
    whole = train(tmp_path / "whole", f"ckpt_path={tmp_path / 'elsewhere'}", *other, "trainer.max_epochs=4")
    assert resume(tmp_path / "second", "trainer.max_epochs=4")["parameters"] == whole["parameters"]


def test_the_path_of_a_checkpoint_is_saved_absolute(tmp_path, monkeypatch):
    train(tmp_path / "first", *SHORT)
    monkeypatch.chdir(tmp_path)
    code, out, err = command(
        train_entry, "output_root=out", "ckpt_path=first/checkpoints/best.ckpt", "logger=none", *SHORT
    )
    assert (code, err) == (0, ""), out
    (saved,) = tmp_path.glob("out/runs/*/.hydra/config.yaml")
    assert OmegaConf.load(saved).ckpt_path == str(tmp_path / "first" / "checkpoints" / "best.ckpt")


def of_another_model(path):
    torch.save({"state_dict": {"network.weight": torch.zeros(1, 3), "network.bias": torch.zeros(1)}}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: None, "is not a checkpoint \\(the file does not exist\\); give a file such as outputs/runs/"),
        (lambda path: path.mkdir(), "is not a checkpoint \\(it is not a regular file\\)"),
        (lambda path: os.mkfifo(path), "is not a checkpoint \\(it is not a regular file\\)"),
        (lambda path: path.touch(), "is not a checkpoint \\(it does not hold only tensors and numbers\\)"),
        (lambda path: path.write_bytes(b"PK\3\4cut"), "is not a checkpoint \\(.+\\)"),
        (lambda path: torch.save({"weight": torch.zeros(1)}, path), "is not a checkpoint \\(it has no state_dict\\)"),
        (lambda path: torch.save({"state_dict": {"network.weight": 1}}, path), "is not a checkpoint \\(.+\\)"),
        (
            lambda path: torch.save({"state_dict": nn.Linear(1, 1)}, path),
            "is not a checkpoint \\(.+\\)",
        ),  # runs no code
        (
            of_another_model,
            r"network.weight is \(1, 3\) there, and \(1, 1\) in this model\); choose the model and data",
        ),
        (lambda path: torch.save({"state_dict": {}}, path), r"network.bias is missing there, and \(1,\) in this model"),
    ],
)
def test_a_file_without_the_weights_of_the_model_is_refused(spoil, message, tmp_path):
    path = tmp_path / "some=what, else.ckpt"
    spoil(path)
    with pytest.raises(UserError, match=f"^ckpt_path={path}: .*{message}") as refused:
        train(tmp_path / "run", f"ckpt_path='{path}'", *SHORT)
    assert "\n" not in str(refused.value)
    assert record(tmp_path / "run")["status"] == "failed"


def test_a_resumed_run_takes_no_ckpt_path(tmp_path):
    train(tmp_path, *SHORT)
    for typed in ("ckpt_path=a=b, c.ckpt", "+ckpt_path=x"):
        code, _, err = command(train_entry, typed, f"resume={tmp_path}")
        assert (code, err.count("\n")) == (1, 1)
        assert err.startswith(f"error: resume={tmp_path}: the run has weights of its own; leave out ")
    assert record(tmp_path)["status"] == "completed"


def test_a_share_of_the_batches_is_one_batch_or_more(tmp_path):
    given = ("trainer.max_epochs=2", "logger=none", "data.batch_size=1")
    assert train(tmp_path / "all", *given, "trainer.overfit_batches=1.0")["steps"] == 2 * 4
    with pytest.raises(UserError, match=r"trainer\.overfit_batches=0\.5 is less than one batch, as there are 1"):
        train(tmp_path / "half", *given, "trainer.overfit_batches=0.5")


def test_a_defect_that_hydra_wraps_is_no_mistake_of_the_user():
    for defect in (AttributeError("a defect"), KeyError("a defect")):
        with pytest.raises(type(defect), match="a defect"), user_errors("model"):
            try:
                raise defect
            except type(defect) as error:
                raise InstantiationException("in hydra's words") from error
    with pytest.raises(UserError, match="model: not so"), user_errors("model"):
        raise InstantiationException("in hydra's words") from ValueError("not so")
