"""Modules and data that do not derive from this project's classes: training, resume, metrics and errors."""

import shutil

import own
import pytest
import torch
from omegaconf import OmegaConf
from runs import command, compose, record, scalars, slow
from torch import nn
from torchmetrics.classification import MulticlassF1Score

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.fitting import build, run
from linear_lab.inference.remeasure import evaluate
from linear_lab.inference.rows import predict
from linear_lab.models import SupervisedModule

pytestmark = pytest.mark.filterwarnings(  # of Lightning, for train.log
    "ignore:You passed in a `val_dataloader`", "ignore:Total length of .* across ranks is zero"
)
BORING = "lightning.pytorch.demos.boring_classes."
NET, CLOUDS = {"_target_": "own.Net"}, {"_target_": "own.Clouds"}
SHORT = ("trainer.max_epochs=4", "trainer.check_val_every_n_epoch=1", "logger.tensorboard.pictures=false")


def config(*overrides, model=NET, data=CLOUDS):
    """Return the config with a model and data that YAML files of the user would define."""
    cfg = compose(*SHORT, *(override for override in overrides if not override.startswith(("model.", "data."))))
    cfg.model, cfg.data = model, data
    OmegaConf.set_struct(cfg, False)
    return OmegaConf.merge(cfg, OmegaConf.from_dotlist([o for o in overrides if o.startswith(("model.", "data."))]))


def train(folder, *overrides, model=NET, data=CLOUDS):
    folder.mkdir(parents=True, exist_ok=True)
    run.train(config(*overrides, model=model, data=data), folder, overrides)
    return record(folder)


def resume(folder, *overrides):
    saved = OmegaConf.load(folder / ".hydra" / "config.yaml")
    changes = OmegaConf.from_dotlist([f"resume={folder}", "trust=[own.Net,own.Clouds]", *overrides])
    run.train(OmegaConf.merge(saved, changes), folder, [f"resume={folder}", *overrides])
    return record(folder)


def weights(folder, which="last"):
    return torch.load(folder / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]


def test_a_module_and_data_of_ones_own(tmp_path, capsys):
    result = train(tmp_path)
    shown = capsys.readouterr().out
    assert result["status"] == "completed"
    assert set(result["metrics"]) == {"train_loss", "val/loss", "val/hits", "test/hits"}
    assert set(result["initial"]) == {"excess_loss", "val/loss", "val/hits"}
    assert result["metrics"]["val/loss"] < result["initial"]["val/loss"]
    assert result["best"]["metrics"]["val/loss"] <= result["metrics"]["val/loss"]
    assert "least squares, the seven steps, pictures, predict and export: Net is no SupervisedModule" in shown
    assert "SGD" not in shown
    assert "predict" not in shown.rpartition("go on")[0].rpartition("evaluate")[2]
    curves = scalars(tmp_path)
    assert curves["val/hits"][-1] == (24, pytest.approx(result["metrics"]["val/hits"]))
    assert curves["train_loss"][-1] == (24, pytest.approx(result["metrics"]["train_loss"]))
    assert {"train_loss", "val/loss", "hp/val_loss", "hp/best_val_loss", "optim/lr"} <= set(curves)


def test_its_metric_decides_which_weights_are_best(tmp_path):
    result = train(tmp_path, "metric=val/hits", "mode=max", "trainer.max_epochs=6")
    curve = dict(scalars(tmp_path)["val/hits"])
    assert result["best"]["metrics"]["val/hits"] == pytest.approx(max(v for step, v in curve.items() if step))
    assert evaluate(str(tmp_path), trust=["own.Net", "own.Clouds"]).items() <= result["best"]["metrics"].items()


@pytest.mark.parametrize(
    "more",
    [
        *slow("a part of the last case", ["data.workers=2"], ["model.scheduler=one_cycle"]),
        ["trainer.accumulate_grad_batches=4", "trainer.gradient_clip_val=0.5"],
        ["model.scheduler=plateau"],
        ["model.scheduler=one_cycle", "data.workers=2", "trainer.max_steps=25"],
        ["trainer.val_check_interval=0.5"],
    ],
)
def test_a_run_that_fails_within_an_epoch_goes_on_to_the_same_bits(more, tmp_path):
    overrides = ("trainer.max_epochs=5", *more)
    expected = train(tmp_path / "whole", *overrides)
    cfg, folder = config(*overrides), tmp_path / "cut"
    cfg.callbacks.fail = {"_target_": "own.Fail", "batch": 15}
    folder.mkdir()
    own.Fail.armed = True
    with pytest.raises(RuntimeError, match="as wanted"):
        run.train(cfg, folder)
    assert record(folder)["status"] == "failed"
    result = resume(folder, "trust=[own.Net,own.Clouds,own.Fail]")
    assert (result["steps"], result["metrics"], result["best"]) == tuple(
        expected[k] for k in ("steps", "metrics", "best")
    )
    assert all(map(torch.equal, weights(folder).values(), weights(tmp_path / "whole").values()))


@pytest.mark.parametrize("epochs", [1, 3])
@pytest.mark.slow("like test_a_run_that_fails_within_an_epoch_goes_on_to_the_same_bits")
def test_goes_on_to_the_same_bits(epochs, tmp_path):
    overrides = ("trainer.max_epochs=5",)
    expected = train(tmp_path / "whole", *overrides)
    folder = tmp_path / "cut"
    train(folder, *overrides, f"trainer.max_epochs={epochs}")
    result = resume(folder, "trainer.max_epochs=5")
    assert result["metrics"] == expected["metrics"]
    assert result["best"] == expected["best"]
    assert all(map(torch.equal, weights(folder).values(), weights(tmp_path / "whole").values()))


@pytest.mark.slow("like test_a_run_that_fails_within_an_epoch_goes_on_to_the_same_bits")
def test_a_kill_within_an_epoch_goes_on_from_its_beginning(tmp_path):
    expected = train(tmp_path / "whole")
    folder = tmp_path / "killed"
    train(folder, "trainer.max_epochs=2")
    killed = shutil.copytree(folder, tmp_path / "copy")
    assert resume(killed, "trainer.max_epochs=4")["metrics"] == expected["metrics"]


def test_without_validation_the_training_loss_decides(tmp_path):
    result = train(
        tmp_path,
        "metric=train_loss",
        model={"_target_": "own.TrainingAlone"},
        data={"_target_": "own.WithoutValidation"},
    )
    assert set(result["metrics"]) == {"train_loss"}
    assert result["best"]["metrics"]["train_loss"] <= result["metrics"]["train_loss"]
    assert len(scalars(tmp_path)["hp/train_loss"]) == 4
    again = resume(tmp_path, "trust=[own.TrainingAlone,own.WithoutValidation]")  # nothing is left to train
    assert (again["status"], again["metrics"], again["best"]) == ("completed", result["metrics"], result["best"])


@pytest.mark.parametrize("name", ["BoringModel", "DemoModel", "ManualOptimBoringModel"])
@pytest.mark.slow("like test_without_validation_the_training_loss_decides")
def test_demo_classes_of_lightning(name, tmp_path):
    data = {"_target_": f"{BORING}BoringDataModule"}
    result = train(tmp_path, "metric=null", model={"_target_": BORING + name}, data=data)
    assert (result["status"], result["steps"], result["metrics"]) == ("completed", 256, {})
    folder = tmp_path / "cut"
    train(folder, "metric=null", "trainer.max_epochs=2", model={"_target_": BORING + name}, data=data)
    assert resume(folder, "trainer.max_epochs=4")["steps"] == 256
    assert all(map(torch.equal, weights(folder).values(), weights(tmp_path).values()))


GIVEN = {"_target_": "own.Given", "net": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}}


def test_optimizer_and_loss_reach_a_module_as_partials_or_specs(tmp_path):
    cfg = config(model=GIVEN | {"loss": "${loss}"})
    cfg.optimizer = {"_target_": "torch.optim.SGD", "lr": 0.5, "_partial_": True}
    run.train(cfg, tmp_path)
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.5
    assert checkpoint["hyper_parameters"] == {"loss": {"_target_": "torch.nn.MSELoss"}, "scheduler": None}


LINEAR, BORING_DATA = "linear_lab.models.linear.LinearModule", {"_target_": f"{BORING}BoringDataModule"}
TEMPLATE = GIVEN | {"optimizer": {"_target_": "torch.optim.Adam", "_partial_": True, "lr": 0.01}}


def test_an_optimizer_that_the_module_s_own_file_says_is_shown(tmp_path, capsys):
    cfg = config(model=TEMPLATE)
    run.train(cfg, tmp_path)
    assert "Adam lr=0.01" in capsys.readouterr().out
    with pytest.raises(UserError, match=r"optimizer\.lr=0\.5: Given takes no optimizer, so this changes nothing"):
        train(tmp_path / "other", "optimizer.lr=0.5", model=TEMPLATE)


def test_a_metric_that_is_no_number_for_an_epoch_ends_nothing(tmp_path):
    result = train(tmp_path, "metric=val/hits", "mode=max", model=NET | {"nan_in": 0})
    assert result["status"] == "completed"
    assert result["best"]["metrics"]["val/hits"] > 0


MISTAKES = {  # overrides, module, data, message
    "no validation": ([], None, {"_target_": "own.WithoutValidation"}, "metric=val/loss: it was not .* train_loss, or"),
    "nothing logged": (
        [],
        f"{BORING}BoringModel",
        BORING_DATA,
        r"no metric was; log it by self.log\('val/loss', v",
    ),
    "a metric that comes late": (["metric=late"], "own.AtTheEnd", CLOUDS, "metric=late: it was not measured"),
    "two optimizers": ([], "own.TwoOptimizers", CLOUDS, "model: .*multiple optimizers.*manual optimization"),
    "no pickle": (["metric=train_loss"], "own.Unsaveable", CLOUDS, "cannot be saved .*; let its buffers"),
    "no plain state": (["metric=train_loss"], "own.Unreadable", CLOUDS, "cannot be saved .*; let its buffers"),
    "no batch": ([], None, {"_target_": "own.Empty"}, "data: the train_dataloader of Empty has no batch"),
    "an optimizer without effect": (["optimizer=adam"], "own.Net", CLOUDS, "=adam: Net takes no optimizer, so this"),
    "a rate without effect": (["optimizer.lr=0.3"], "own.Net", CLOUDS, "optimizer.lr=0.3: Net takes no optimizer"),
    "early stopping by nothing": (
        ["callbacks=early_stopping", "metric=nope"],
        "own.Net",
        CLOUDS,
        "monitors nope, which is not",
    ),
    "loaders of its own": (
        [],
        f"{BORING}BoringModel",
        compose("data=toy").data,
        "defines a train_dataloader, which data=To",
    ),
    "no features": ([], LINEAR, CLOUDS, "needs in_features, which Clouds does not define"),
}


@pytest.mark.parametrize("kind", MISTAKES)
def test_a_mistake_has_a_message(kind, tmp_path):
    overrides, model, data, message = MISTAKES[kind]
    with pytest.raises(UserError, match=message):
        train(tmp_path, *overrides, model={"_target_": model or "own.TrainingAlone"}, data=data)
    assert record(tmp_path)["status"] == "failed"


def test_predict_says_what_it_needs(tmp_path):
    train(tmp_path, "trainer.max_epochs=1")
    with pytest.raises(UserError, match=r"own\.Net on own\.Clouds; only evaluate works"):
        predict(str(tmp_path), x=[1, 2], trust=["own.Net", "own.Clouds"])


class Own(SupervisedModule):
    """A network of six lines with an additional metric."""

    def __init__(self, in_features, out_features, **training):
        network = nn.Sequential(nn.Linear(in_features, 8), nn.Dropout(0.2), nn.ReLU(), nn.Linear(8, out_features))
        super().__init__(network, metrics={"f1": MulticlassF1Score(out_features)}, **training)


class Six(SupervisedModule):
    """A network whose constructor has no argument for the bias."""

    def __init__(self, in_features, out_features, **training):
        super().__init__(nn.Linear(in_features, out_features), **training)


@pytest.mark.slow("like test_no_logger_leaves_no_events")
def test_a_network_of_ones_own_on_a_table(tmp_path):
    (tmp_path / "table.csv").write_text("a,c\n" + "".join(f"{k},{2 * k + 3}\n" for k in range(20)))
    cfg = compose("data=table", f"data.path={tmp_path}/table.csv", "data.y=[c]", "logger=none", "optimizer.lr=0.3")
    cfg.model = {"_target_": f"{__name__}.Six"}
    run.train(cfg, tmp_path)
    assert record(tmp_path)["parameters"] == {"weight": [[pytest.approx(2)]], "bias": [pytest.approx(3)]}
    assert record(tmp_path)["optimum"]["bias"] == [pytest.approx(3)]


CLASSES = ("data=toy_classes", "loss=cross_entropy", "trainer.max_epochs=6")


def test_a_network_and_a_metric_of_ones_own(tmp_path):
    cfg = compose(*SHORT, *CLASSES, "metric=val/f1", "mode=max")
    cfg.model = {"_target_": f"{__name__}.Own"}
    run.train(cfg, tmp_path)
    result = record(tmp_path)
    names = {f"{part}/{name}" for part in ("train", "val", "test") for name in ("loss", "accuracy", "f1")}
    assert set(result["metrics"]) == names
    assert result["best"]["metrics"]["val/f1"] == pytest.approx(max(v for s, v in scalars(tmp_path)["val/f1"] if s))
    assert evaluate(str(tmp_path), trust=f"{__name__}.Own") == result["best"]["metrics"]
    predict(str(tmp_path), x=[1, 2], trust=f"{__name__}.Own")
    data, model = build.build(cfg)
    logits = model.network.eval()(data.parts["val"][0])
    expected = MulticlassF1Score(3)(logits, data.parts["val"][1]).item()
    assert result["initial"]["val/f1"] == pytest.approx(expected)


def test_its_dropout_goes_on_to_the_same_bits(tmp_path):
    for folder, epochs in (("whole", 6), ("cut", 3)):
        cfg = compose(*SHORT, *CLASSES, "data.batch_size=7", f"trainer.max_epochs={epochs}")
        cfg.model = {"_target_": f"{__name__}.Own"}
        (tmp_path / folder).mkdir()
        run.train(cfg, tmp_path / folder)
    saved = OmegaConf.load(tmp_path / "cut" / ".hydra" / "config.yaml")
    changes = {"resume": str(tmp_path / "cut"), "trust": f"{__name__}.Own", "trainer": {"max_epochs": 6}}
    run.train(OmegaConf.merge(saved, changes), tmp_path / "cut", [])
    assert record(tmp_path / "cut")["parameters"] == record(tmp_path / "whole")["parameters"]


def test_a_module_of_ones_own_on_our_data(tmp_path):
    model = {"_target_": "own.Net", "lr": 0.1}
    result = train(tmp_path, model=model, data=compose("data=toy_classes").data)
    assert set(result["metrics"]) == {"train_loss", "val/loss", "val/hits", "test/hits"}
    assert result["rows"].keys() == {"train", "val", "test"}
    assert result["loss_unit"] is None  # the module does not use the loss of the config


def test_the_page_of_a_sweep_of_a_module_without_the_loss_of_the_config(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "model" / "net.yaml").write_text("_target_: own.Net\n")
    typed = (
        "--config-dir",
        "conf",
        "model=net",
        "data=toy_classes",
        "metric=val/hits",
        "mode=max",
        "trainer.max_epochs=2",
    )
    code, out, err = command(train_entry, *typed, "logger.tensorboard.pictures=false", "seed=0,1", "name=study", "-m")
    assert (code, "could not be written" in out + err + caplog.text) == (0, False), err
    assert [*tmp_path.glob("outputs/sweeps/study/_sweep/events*")]


def test_a_supervised_module_on_data_of_ones_own(tmp_path):
    model = {"_target_": LINEAR, "in_features": 2, "out_features": 3}
    result = train(tmp_path, "loss=cross_entropy", "optimizer=adam", model=model)
    assert {"train/loss", "val/loss", "val/accuracy", "test/loss"} <= set(result["metrics"])
    assert result["parameters"].keys() == {"bias", "weight"}
    assert evaluate(str(tmp_path), "last", trust="own.Clouds").items() <= result["metrics"].items()
    with pytest.raises(UserError, match=r"Module on own\.Clouds; only evaluate works"):
        predict(str(tmp_path), x=[1, 2], trust="own.Clouds")


@pytest.mark.slow("like test_without_a_metric_none_is_ranked")
def test_demo_classes_of_lightning_are_swept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("BoringDataModule", "BoringModel", "DemoModel", "ManualOptimBoringModel"):
        group = "data" if name.endswith("DataModule") else "model"
        (tmp_path / "conf" / group).mkdir(parents=True, exist_ok=True)
        (tmp_path / "conf" / group / f"{name}.yaml").write_text(f"_target_: {BORING}{name}\n")
    typed = ("model=BoringModel,DemoModel,ManualOptimBoringModel", "data=BoringDataModule", "metric=null", "seed=0,1")
    same = ("--config-dir", "conf", *typed, "trainer.max_epochs=2", "logger=none", "name=study", "-m")
    code, out, err = command(train_entry, *same)
    assert code == 0, err
    assert "6 jobs: 6 completed" in out
    assert {record(path.parent)["steps"] for path in tmp_path.glob("outputs/sweeps/study/*/result.json")} == {128}
    code, out, err = command(train_entry, *same)  # nothing is left to do
    assert code == 0, err
    assert "6 jobs: 6 completed" in out


def test_a_metric_that_is_never_measured_is_named(tmp_path):
    given = ("trainer.max_epochs=0", "metric=train_loss")
    with pytest.raises(UserError, match="metric=train_loss: it was not measured"):
        train(tmp_path, *given, model={"_target_": "own.TrainingAlone"}, data={"_target_": "own.WithoutValidation"})
    assert record(tmp_path)["status"] == "failed"
