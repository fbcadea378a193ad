"""Event files of a run, as TensorBoard reads them."""

import gc
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from omegaconf import OmegaConf
from runs import command, compose, events, record, resume, scalars, train
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams import api_pb2, metadata
from torch import nn

from linear_lab import UserError
from linear_lab import train as train_entry
from linear_lab.fitting.build import build, build_reference
from linear_lab.fitting.callbacks import Interrupted
from linear_lab.models import LinearModule, SupervisedModule
from linear_lab.terminal.layout import markdown_table
from linear_lab.tracking.graph import trace
from linear_lab.tracking.hparams import START, hyperparameters
from linear_lab.tracking.pictures.of_run import Pictures
from linear_lab.tracking.tensorboard import RunLogger, event_files
from linear_lab.tracking.tracker import coefficients, gradient_norms, has_pictures, on_path

SHORT = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")


def text(folder, tag):
    """Return a logged text."""
    (event,) = events(folder).Tensors(f"{tag}/text_summary")
    return event.tensor_proto.string_val[0].decode()


def status(folder):
    """Return the status in the end record that TensorBoard uses; None if there is none."""
    metadata_of = events(folder).SummaryMetadata
    try:
        content = metadata_of(metadata.SESSION_END_INFO_TAG).plugin_data.content
    except KeyError:
        return None
    return api_pb2.Status.Name(metadata.parse_session_end_info_plugin_data(content).status).removeprefix("STATUS_")


def cells(folder):
    """Return the hyperparameters of a run's row as Python values."""
    content = events(folder).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    values = metadata.parse_session_start_info_plugin_data(content).hparams
    return {name: getattr(value, value.WhichOneof("kind")) for name, value in values.items()}


def test_one_folder_holds_all_of_a_run(finished):
    assert {path.name for path in finished.iterdir() if path.is_dir()} == {".hydra", "checkpoints"}  # no sub-runs
    assert sum(path.stat().st_size for path in finished.glob("events*")) < 500_000


def test_curves_go_from_the_untouched_to_the_final_model(finished):
    curves, result = scalars(finished), record(finished)
    assert set(curves) == {
        "train/loss", "val/loss", "test/loss", "train/excess", "train/log10_excess", "optim/lr", "optim/grad_norm",
        "param/weight", "param/bias", "optimum/weight", "optimum/bias", "optimum/loss", "time/steps_per_second",
        "hp/train_loss", "hp/val_loss", "hp/best_val_loss", "hp/excess_loss", "hp/steps_above_1_percent",
    }  # fmt: skip
    for tag, points in curves.items():
        steps = {"test/loss": [500], "time/steps_per_second": list(range(10, 501, 10))}
        assert [step for step, _ in points] == steps.get(tag, list(range(0, 501, 10))), tag
        assert all(np.isfinite(value) for _, value in points), tag
    first, last = ({tag: points[end][1] for tag, points in curves.items()} for end in (0, -1))
    initial, final, best = result["initial"], result["metrics"], result["best"]
    assert (first["param/weight"], first["param/bias"]) == pytest.approx((initial["weight"][0][0], initial["bias"][0]))
    assert last["param/weight"] == pytest.approx(result["parameters"]["weight"][0][0])
    assert first["train/excess"] == pytest.approx(initial["excess_loss"])
    assert last["train/excess"] == last["hp/excess_loss"] == pytest.approx(result["excess_loss"])
    assert last["train/log10_excess"] == pytest.approx(np.log10(result["excess_loss"]))
    assert last["hp/val_loss"] == last["val/loss"] == final["val/loss"]
    assert last["hp/best_val_loss"] == pytest.approx(best["metrics"]["val/loss"])
    assert last["test/loss"] == final["test/loss"]
    assert first["optim/grad_norm"] == pytest.approx(
        np.hypot(*(np.ravel(g)[0] for g in result["first_step"]["gradient"].values()))
    )
    small = next(step for step, value in curves["train/excess"] if value <= 0.01 * first["train/excess"])
    assert last["hp/steps_above_1_percent"] == small == 10


def test_the_best_value_is_that_of_the_best_checkpoint(tmp_path):
    """The initial model is better than all later ones here, and it has no checkpoint."""
    start = ("model.weight=2", "model.bias=0", "data.train={x: [1, 2], y: [3, 7]}")
    often = ("trainer.max_epochs=5", "trainer.check_val_every_n_epoch=1")
    result = train(tmp_path, "optimizer=adam", "optimizer.lr=0.5", *start, *often)
    values = [value for _, value in scalars(tmp_path)["val/loss"]]
    assert values[0] == 0 < min(values[1:]) == pytest.approx(result["best"]["metrics"]["val/loss"])
    bests = [value for _, value in scalars(tmp_path)["hp/best_val_loss"]]
    assert bests == [0, *np.minimum.accumulate(values[1:])]


def test_the_rate_of_each_step_is_logged(tmp_path):
    train(tmp_path, "scheduler=step", "scheduler.step_size=2", "scheduler.gamma=0.5", "trainer.max_epochs=5",
          "trainer.check_val_every_n_epoch=1")  # fmt: skip
    rates = [value for _, value in scalars(tmp_path)["optim/lr"]]
    assert rates == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.05, 0.025])


def test_steps_above_one_percent_count_until_the_first_step_below(tmp_path):
    train(tmp_path, "trainer.max_epochs=12", "trainer.check_val_every_n_epoch=1")
    curves = scalars(tmp_path)
    above = [step for step, value in curves["train/excess"] if value > 0.01 * curves["train/excess"][0][1]]
    assert above == list(range(len(above)))
    assert [value for _, value in curves["hp/steps_above_1_percent"]] == [min(k, len(above)) for k in range(13)]


@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "cross_entropy"])
def test_gradients_are_those_of_each_row_and_of_their_mean(loss):
    source = "toy_classes" if loss == "cross_entropy" else "synthetic"
    besides = [] if loss == "cross_entropy" else ["data.features=3", "data.targets=2"]
    data, model = build(compose(f"data={source}", f"loss={loss}", "data.samples=60", *besides))
    x, y = data.parts["train"]
    rows = []
    for row in range(len(x)):
        parameters = list(model.parameters())
        by_row = torch.autograd.grad(model.loss(model(x[row : row + 1]), y[row : row + 1]), parameters)
        rows.append(torch.cat([values.flatten() for values in by_row]))
    rows = torch.stack(rows)
    with torch.inference_mode():
        norm, norms = gradient_norms(model, x, y)
    torch.testing.assert_close(norms.float(), rows.norm(dim=1))
    assert norm == pytest.approx(rows.mean(0).norm().item(), rel=1e-5)
    assert all(p.grad is None for p in model.parameters())


def test_the_gradient_of_many_rows_is_their_mean_too(monkeypatch):
    data, model = build(compose("data=synthetic"))
    x, y = data.parts["train"]
    whole = gradient_norms(model, x, y)
    monkeypatch.setattr("linear_lab.tracking.tracker.EVALUATION_ROWS", 64)
    blocks = gradient_norms(model, x, y)
    assert blocks[0] == pytest.approx(whole[0], rel=1e-6)
    torch.testing.assert_close(blocks[1].float(), whole[1].float())


def test_each_coefficient_has_a_curve_while_there_are_few():
    weight, bias = [[1.0, 2.0], [3.0, 4.0]], [5.0, 6.0]
    assert coefficients("param", {"weight": weight, "bias": bias}, ["a", "b"], ["y", "z"]) == {
        "param/weight/y/a": 1, "param/weight/y/b": 2, "param/weight/z/a": 3, "param/weight/z/b": 4,
        "param/bias/y": 5, "param/bias/z": 6,
    }  # fmt: skip
    assert coefficients("param", {"weight": [[2.0]], "bias": None}, ["x"], ["y"]) == {"param/weight": 2.0}
    many = [f"x{k}" for k in range(17)]
    norms = coefficients("param", {"weight": [[2.0] * 17], "bias": [3.0]}, many, ["y"])
    assert norms == pytest.approx({"param/weight_norm": 2 * 17**0.5, "param/bias_norm": 3.0})


def test_pictures_and_histograms_are_spaced_logarithmically(finished):
    found = events(finished)
    assert set(found.Tags()["images"]) == {"pictures/fit", "pictures/loss_surface"}
    assert set(found.Tags()["histograms"]) == {"train/residuals", "train/gradient_norms"}
    steps = [0, 1, 3, 10, 30, 100, 300, 500]
    for tag in found.Tags()["images"]:
        images = found.Images(tag)
        assert [image.step for image in images] == steps
        assert len({image.encoded_image_string for image in images}) == len(steps)  # all pictures differ
        assert all(image.width > 400 and image.height > 300 for image in images)
    for tag in found.Tags()["histograms"]:
        assert [event.step for event in found.Histograms(tag)] == steps
    start = found.Histograms("train/residuals")[0].histogram_value
    initial = record(finished)["initial"]
    rest = initial["weight"][0][0] * np.arange(1, 5) + initial["bias"][0] - 2 * np.arange(1, 5)
    assert (start.num, start.min, start.max) == (4, pytest.approx(rest.min()), pytest.approx(rest.max()))


def test_pictures_of_a_standardized_table_are_in_its_units(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b,c\n" + "".join(f"{k},{k * k % 7},{300 * k - (k * k % 7) + k % 5}\n" for k in range(40)))
    cfg = compose("data=table", f"data.path={table}", "data.y=[c]")
    data, model = build(cfg)
    with torch.no_grad():
        model.network.weight.copy_(torch.tensor([[0.5, -0.25]]))
    pictures = Pictures(data, model, build_reference(cfg, data, model))
    pictures.draw(0, [])
    x, y = (values.numpy() for values in data.raw["train"])
    (mean, scale), (y_mean, y_scale) = ((v.mean(0), v.std(0)) for v in (x, y))
    bias = model.network.bias.item()
    y_hat = y_mean + y_scale * ((x - mean) / scale @ np.array([[0.5], [-0.25]]) + bias)
    low, high = pictures.agreement.limits
    shown = pictures.agreement.dots["train"].get_ydata()
    np.testing.assert_allclose(shown, np.clip(y_hat[:, 0], low, high), rtol=1e-5)
    np.testing.assert_allclose(pictures.residuals()["residuals"], (y_hat - y)[:, 0], rtol=1e-4)
    np.testing.assert_allclose(pictures.coefficients.dots.get_xdata(), [0.5, -0.25])


def test_a_run_leaves_no_file_open(tmp_path):
    gc.disable()  # the collector might close it
    train(tmp_path, *SHORT)
    gc.enable()
    held = [path.readlink() for path in Path("/proc/self/fd").iterdir() if path.exists()]
    assert not [path for path in held if tmp_path in path.parents]


@pytest.mark.parametrize(
    ("overrides", "pictures"),
    [
        (["data=synthetic", "data.features=3", "data.targets=2"], {"predictions", "coefficients"}),
        (["data=toy_classes", "loss=cross_entropy"], {"decision_regions"}),
        (["model.bias=false"], {"fit"}),
        (["loss=mae"], {"fit", "loss_surface"}),
        (["logger.tensorboard.pictures=false"], set()),
    ],
)
def test_pictures_suit_the_data(overrides, pictures, tmp_path):
    train(tmp_path, *overrides, "trainer.max_epochs=1", *(["logger=tensorboard"] if pictures else []))
    found = events(tmp_path)
    assert set(found.Tags()["images"]) == {f"pictures/{name}" for name in pictures}
    assert bool(found.Tags()["histograms"]) == bool(pictures)
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [0, 1]


def test_classes_of_other_features_than_two_have_a_confusion_matrix(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,kind\n" + "".join(f"{k},{'low' if k < 20 else 'high'}\n" for k in range(40)))
    train(tmp_path / "run", "data=table", f"data.path={table}", "data.y=[kind]", "loss=cross_entropy",
          "trainer.max_epochs=1", "logger=tensorboard")  # fmt: skip
    assert events(tmp_path / "run").Tags()["images"] == ["pictures/confusion"]


def test_pictures_are_on_or_off(tmp_path):
    with pytest.raises(UserError, match=r"logger\.tensorboard: pictures must be true or false, got 7"):
        train(tmp_path, "logger.tensorboard.pictures=7")


def test_steps_of_pictures_and_of_the_path():
    assert [step for step in range(5000) if has_pictures(step)] == [0, 1, 3, 10, 30, 100, 300, 1000, 3000]
    assert [step for step in range(200) if on_path(step)] == [*range(64), *range(64, 128, 2), *range(128, 200, 4)]


def test_the_row_of_a_run(finished):
    found = cells(finished)
    assert {name: found[name] for name in ("optimizer", "lr", "momentum", "batch_size", "seed")} == {
        "optimizer": "SGD", "lr": 0.1, "momentum": "0", "batch_size": 4, "seed": 0
    }  # fmt: skip
    assert found["optimizer.nesterov"] is False
    assert found["trainer.max_epochs"] == 500
    assert "data.order_seed" not in found  # the column seed shows its value
    assert status(finished) == "SUCCESS"


@pytest.mark.parametrize(("option", "momentum", "lr"), [("adam", "-", 0.1), ("rmsprop", "0", 0.01), ("lbfgs", "-", 1)])
def test_each_optimizer_fills_the_columns_that_all_have(option, momentum, lr):
    cfg = compose(f"optimizer={option}", "data=synthetic", "data.batch_size=5000")
    data, model = build(cfg)
    found = hyperparameters({**cfg}, model.configure_optimizers(), len(data.parts["train"][0]))
    assert (found["momentum"], found["lr"], found["batch_size"], found["scheduler"]) == (momentum, lr, 700, "-")


def test_a_run_that_diverged_has_its_last_numbers_and_failed(tmp_path):
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path, "optimizer.lr=0.5")
    result, curves = record(tmp_path), scalars(tmp_path)
    for tag, points in curves.items():
        assert points[-1][0] == result["steps"], tag
    assert curves["hp/val_loss"][-1][1] == pytest.approx(result["metrics"]["val/loss"])
    assert curves["hp/best_val_loss"][-1][1] == pytest.approx(result["initial"]["val/loss"])
    assert status(tmp_path) == "FAILURE"
    assert result["error"] in text(tmp_path, "outcome")


@pytest.mark.parametrize("lr", ["1e20", "1e30"])
def test_numbers_beyond_float32_are_not_logged(lr, tmp_path):
    with pytest.raises(UserError, match="diverged"):
        train(tmp_path, f"optimizer.lr={lr}", "trainer.precision=64-true", "logger=tensorboard")
    assert all(np.isfinite(value) for points in scalars(tmp_path).values() for _, value in points)


def test_a_run_without_validation_has_a_row_with_its_end(tmp_path):
    result = train(tmp_path, "trainer.limit_val_batches=0", *SHORT)
    assert cells(tmp_path)["optimizer"] == "SGD"
    assert scalars(tmp_path)["hp/val_loss"] == [(3, pytest.approx(result["metrics"]["val/loss"]))]


class WithDropout(LinearModule):
    """A network with dropout and batch statistics, whose state each forward pass changes."""

    def __init__(self, in_features, out_features, **arguments):
        super().__init__(in_features, out_features, **arguments)
        layers = nn.Linear(in_features, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.Linear(8, out_features)
        self.network = nn.Sequential(*layers)
        self.network.register_parameter("unused", nn.Parameter(torch.zeros(1)))


class Noisy(LinearModule):
    """An nn.Linear whose forward pass adds noise, also in evaluation mode."""

    def forward(self, x):
        return self.network(x + 0.1 * torch.randn_like(x)) ** 2


class LogsToo(LinearModule):
    """Logs a number of its own in addition to the metrics."""

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        super().validation_step(batch, batch_idx, dataloader_idx)
        if dataloader_idx == 0:
            self.log("val/mine", float(self.trainer.global_step), add_dataloader_idx=False)


def test_numbers_that_a_module_logs_have_the_steps_of_the_metrics(tmp_path):
    train(tmp_path, f"model._target_={__name__}.LogsToo", "trainer.max_epochs=30")
    found = scalars(tmp_path)
    assert (
        found["val/mine"] == [(step, step) for step, _ in found["val/loss"]] == [(0, 0), (10, 10), (20, 20), (30, 30)]
    )
    assert "epoch" not in found


class WithoutRate(torch.optim.Optimizer):
    """Subtracts a fixed share of the gradient."""

    def __init__(self, params, weight_decay=0):
        super().__init__(params, {"weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None):
        with torch.enable_grad():
            loss = closure()
        for p in self.param_groups[0]["params"]:
            p.sub_(p.grad, alpha=0.01)
        return loss


@pytest.mark.parametrize("module", ["WithDropout", "Noisy"])
def test_logging_does_not_change_training(module, tmp_path):
    overrides = ("data=synthetic", "data.batch_size=100", f"model._target_={__name__}.{module}", "optimizer.lr=0.001")
    states = []
    for logger in ("logger=none", "logger=tensorboard"):
        train(tmp_path / logger, *overrides, logger, "trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1")
        states.append(torch.load(tmp_path / logger / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"])
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name]), name
    found = events(tmp_path / "logger=tensorboard")
    assert found.Tags()["images"] == ["pictures/predictions"]
    assert found.Tags()["histograms"] == ["train/residuals"]  # gradients of rows are logged for nn.Linear only


@pytest.mark.parametrize("precision", ["bf16-true", "16-true", "bf16-mixed"])
@pytest.mark.slow("like test_a_batch_that_takes_no_step_adds_no_point_and_no_picture")
def test_half_precision_is_logged_too(precision, tmp_path):
    train(tmp_path, f"trainer.precision={precision}", "trainer.max_epochs=1", "logger=tensorboard")
    assert set(events(tmp_path).Tags()["images"]) == {"pictures/fit", "pictures/loss_surface"}
    assert scalars(tmp_path)["optim/grad_norm"][0][1] == pytest.approx(28.86, rel=0.01)


def test_an_optimizer_without_a_rate(tmp_path):
    without = [f"~optimizer.{key}" for key in ("lr", "momentum", "nesterov")]
    train(tmp_path, f"optimizer._target_={__name__}.WithoutRate", *without, *SHORT)
    assert "lr" not in cells(tmp_path)
    assert "optim/lr" not in scalars(tmp_path)


@pytest.mark.slow("like test_a_batch_that_takes_no_step_adds_no_point_and_no_picture")
def test_a_run_whose_checkpoint_has_no_state_of_the_tracker_goes_on(tmp_path):
    train(tmp_path, "trainer.max_epochs=70", "logger=tensorboard")
    path = tmp_path / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["Tracker"]
    torch.save(checkpoint, path)
    (tmp_path / START).unlink()
    resume(tmp_path, "trainer.max_epochs=71")
    assert cells(tmp_path)["trainer.max_epochs"] == 71
    assert [step for step, _ in scalars(tmp_path)["param/weight"]][-1] == 71
    assert [image.step for image in events(tmp_path).Images("pictures/loss_surface")][-1] == 71


@pytest.mark.parametrize(
    ("typed", "shown", "saved"),
    [
        ("tags=[two words,007]", "two words, 007", ["two words", "007"]),
        ("tags=one", "one", "one"),
        ("tags=null", "-", None),
        ("tags=[a\udcff,\x1b]", "a?, ?", ["a\udcff", "\x1b"]),
        ("seed=0", "-", []),
    ],
)
@pytest.mark.slow("like test_seed_zero_is_a_seed")
def test_tags_are_a_column_of_the_row(typed, shown, saved, tmp_path):
    folder = tmp_path / "run"
    code, _, err = command(train_entry, typed, f"hydra.run.dir={folder}", "logger.tensorboard.pictures=false", *SHORT)
    assert (code, err) == (0, "")
    assert cells(folder)["tags"] == shown
    assert OmegaConf.load(folder / ".hydra" / "config.yaml").tags == saved


@pytest.mark.slow("like test_a_resumed_run_keeps_counting_batches_across_epochs")
def test_a_run_resumed_with_another_config_logs_it(tmp_path):
    mini_batches = ("data=synthetic", "data.samples=20", "data.batch_size=5", "trainer.accumulate_grad_batches=2")
    train(tmp_path, *mini_batches, "trainer.max_epochs=2")
    assert (cells(tmp_path)["batch_size"], cells(tmp_path)["trainer.max_epochs"]) == (10, 2)
    resume(tmp_path, "trainer.max_epochs=4", "trainer.accumulate_grad_batches=1")
    assert (cells(tmp_path)["batch_size"], cells(tmp_path)["trainer.max_epochs"]) == (5, 4)
    shown = events(tmp_path).Tensors("config/text_summary")
    assert ["max_epochs: 4" in event.tensor_proto.string_val[0].decode() for event in shown] == [False, True]
    assert status(tmp_path) == "SUCCESS"


def test_a_resumed_run_logs_the_rates_of_its_schedule(tmp_path):
    schedule = ("scheduler=step", "scheduler.step_size=1", "trainer.check_val_every_n_epoch=1")
    train(tmp_path, *schedule, "trainer.max_epochs=2")
    resume(tmp_path, "trainer.max_epochs=4")
    assert [value for _, value in scalars(tmp_path)["optim/lr"]] == pytest.approx([0.1, 0.1, 0.05, 0.025, 0.0125])


def stop_at(step, action, monkeypatch):
    """Call a function after a step, before its checkpoint."""

    def act(trainer, *_):
        if trainer.global_step == step:
            action()

    callback = Callback()
    callback.on_train_batch_end = act
    original = Trainer.__init__
    monkeypatch.setattr(
        Trainer, "__init__", lambda self, *_, callbacks=(), **k: original(self, callbacks=[*callbacks, callback], **k)
    )


def interrupt():
    raise Interrupted(130)


def fail():
    raise OSError("no such luck")


@pytest.mark.parametrize(("action", "ended"), [(interrupt, None), (fail, "FAILURE")])
@pytest.mark.slow("like test_a_batch_that_takes_no_step_adds_no_point_and_no_picture")
def test_a_resumed_run_has_one_row_with_one_end(action, ended, tmp_path, monkeypatch):
    overrides = ("trainer.max_epochs=7", "trainer.check_val_every_n_epoch=3", "logger=tensorboard")
    train(tmp_path / "whole", *overrides)
    folder = tmp_path / "run"
    with monkeypatch.context() as patched, pytest.raises((Interrupted, OSError)):
        stop_at(5, action, patched)
        train(folder, *overrides)
    assert status(folder) == ended
    before = cells(folder)
    resume(folder)
    assert status(folder) == "SUCCESS"
    assert cells(folder) == before
    assert len(list(folder.glob("events*.end"))) == 1
    one, two = (scalars(path) for path in (folder, tmp_path / "whole"))
    assert [len(curves.pop("time/steps_per_second")) for curves in (one, two)] == [3, 3]
    assert one == two
    found = events(folder)
    for tag in found.Tags()["images"]:
        assert [image.step for image in found.Images(tag)] == [0, 1, 3, 7]
    resume(folder)  # nothing is left to train, and nothing is logged twice
    assert scalars(folder)["test/loss"] == one["test/loss"]
    assert len(events(folder).Images("pictures/fit")) == 4
    (end,) = folder.glob("events*.end")
    content = end.read_bytes()
    with pytest.raises(UserError, match="seed=3 cannot change"):
        resume(folder, "seed=3")  # a refused resume keeps the end and its time
    assert list(folder.glob("events*.end")) == [end]
    assert end.read_bytes() == content


def test_events_of_a_resumed_run_come_after_the_old_ones(tmp_path):
    """TensorBoard reads files in the order of their names: second, machine, process."""
    old = tmp_path / f"events.out.tfevents.{int(time.time())}.zzz.9999999.0"
    old.touch()
    (tmp_path / "events.out.tfevents.x.zzz.1.0").touch()
    unused = RunLogger(str(tmp_path), purge_step=3)
    assert unused.experiment  # Lightning reads it before training
    unused.finalize("failed")
    unused.close()
    assert event_files(tmp_path) == [old]  # a purge step in a file without events would hide the old events
    logger = RunLogger(str(tmp_path), purge_step=3)
    logger.log_metrics({"a": 1.0}, 3)
    logger.close()
    assert event_files(tmp_path)[0] == old
    assert len(event_files(tmp_path)) == 2


def test_what_is_logged_together_is_one_event_and_on_disk_within_a_second(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("linear_lab.tracking.tensorboard.time.monotonic", lambda: now[0])
    logger = RunLogger(str(tmp_path))
    for step, written in ((0, [(0, 2)]), (1, [(0, 2)]), (2, [(0, 2), (1, 2), (2, 2)])):
        logger.log_metrics({"a": 1.0, "b": step, "c": float("nan")}, step)
        (path,) = event_files(tmp_path)
        found = [(e.step, len(e.summary.value)) for e in LegacyEventFileLoader(str(path)).Load() if e.summary.value]
        assert found == written
        now[0] += 0.6
    logger.log_metrics({"a": 2.0}, 3)
    logger.close()
    assert [step for step, _ in scalars(tmp_path)["a"]] == [0, 1, 2, 3]


def test_the_graph_goes_from_x_and_y_to_the_loss(finished):
    (path,) = event_files(finished)
    content = next(event.graph_def for event in LegacyEventFileLoader(str(path)).Load() if event.graph_def)
    nodes = {node.name: node for node in GraphDef.FromString(content).node}
    assert {name: node.op for name, node in nodes.items()} == {
        "x": "x", "y": "y", "network/weight": "Parameter", "network/bias": "Parameter", "network": "Linear",
        "loss": "MSELoss", "output": "output",
    }  # fmt: skip
    assert list(nodes["network"].input) == ["x", "network/weight", "network/bias"]
    assert list(nodes["loss"].input) == ["network", "y"]
    (shape,) = nodes["network"].attr["_output_shapes"].list.shape
    assert [dim.size for dim in shape.dim] == [1, 1]


def test_custom_scalars_name_existing_curves(finished):
    content = events(finished).Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    charts = {chart.title: list(chart.multiline.tag) for c in Layout.FromString(content).category for chart in c.chart}
    assert list(charts) == ["train, val and optimum", "log10 of the excess loss", "weight", "bias"]
    tags = list(scalars(finished))
    for title, patterns in charts.items():
        for pattern in patterns:
            assert [tag for tag in tags if re.search(pattern, tag)], (title, pattern)
    assert charts["weight"] == ["^param/weight$", "^optimum/weight$"]


def test_the_config_and_the_outcome_are_texts(finished):
    assert "_target_: torch.optim.SGD" in text(finished, "config")
    outcome, found = text(finished, "outcome"), record(finished)
    optimum = found["optimum"]
    assert "**completed**" in outcome
    assert f"| optimum | `y = 2 x {'-' if optimum['bias'][0] < 0 else '+'} {abs(optimum['bias'][0]):.6g}` |" in outcome
    assert abs(optimum["bias"][0]) < 1e-30  # its sign depends on the processor
    assert f"| train/loss | 25.1283 | {found['metrics']['train/loss']:.6g} | {optimum['train/loss']:.6g} |" in outcome


def test_a_cell_of_a_table_is_escaped():
    assert markdown_table(["a|b"], [["`c\nd`"]]) == "| a\\|b |\n| --- |\n| `c`, `d` |"


def test_a_batch_that_takes_no_step_adds_no_point_and_no_picture(tmp_path):
    overrides = ("data.batch_size=1", "trainer.accumulate_grad_batches=2", "trainer.max_epochs=5")
    train(tmp_path, *overrides, "logger=tensorboard")
    path = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["Tracker"]["path"]
    assert [step for step, *_ in path] == list(range(11))
    assert [image.step for image in events(tmp_path).Images("pictures/fit")] == [0, 1, 3, 10]


def test_no_logger_leaves_no_events(tmp_path):
    train(tmp_path, "logger=none", *SHORT)
    assert not list(tmp_path.glob("events*"))
    assert json.loads((tmp_path / "result.json").read_text())["status"] == "completed"


class Reshaping(nn.Module):
    """Reads the shape of x, or a value of x, which cannot be traced."""

    def __init__(self, by_value):
        super().__init__()
        self.layer, self.by_value = nn.Linear(2, 1), by_value

    def forward(self, x):
        if self.by_value and x.sum() > 0:
            return self.layer(-x)
        return self.layer(x.reshape(x.shape[0], -1))


def test_the_graph_of_a_network_of_ones_own():
    x, y = torch.ones(1, 2, 1), torch.ones(1, 1)
    nodes = {node.name: node for node in trace(SupervisedModule(Reshaping(by_value=False)), x, y).node}
    assert [dim.size for dim in nodes["reshape"].attr["_output_shapes"].list.shape[0].dim] == [1, 2]
    assert list(nodes["reshape"].input) == ["x", "getitem"]
    assert not nodes["getitem"].attr  # a number has no shape
    assert trace(SupervisedModule(Reshaping(by_value=True)), x, y) is None


def test_the_graph_names_all_parameters_of_a_node():
    layer = nn.TransformerEncoderLayer(2, 1, dim_feedforward=3)  # a node, since its parts are not traced
    nodes = {node.name: node for node in trace(SupervisedModule(layer), torch.ones(1, 2), torch.ones(1, 2)).node}
    wanted = {f"network/{name}": list(parameter.shape) for name, parameter in layer.named_parameters()}
    assert list(nodes["network"].input) == ["x", *wanted]
    for name, shape in wanted.items():
        assert [dim.size for dim in nodes[name].attr["_output_shapes"].list.shape[0].dim] == shape


def test_a_histogram_has_finite_numbers_only(tmp_path):
    logger = RunLogger(str(tmp_path), pictures=False)
    logger.log_histogram("some", np.array([1.0, np.nan, 2.0, np.inf]), 1)
    logger.log_histogram("none", np.array([np.nan, np.inf]), 1)
    logger.close()
    found = events(tmp_path)
    assert found.Tags()["histograms"] == ["some"]
    assert found.Histograms("some")[0].histogram_value.num == 2
