"""Losses, gradients and trained weights against values by hand, NumPy and a plain PyTorch loop."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from runs import compose, slow, train
from torch import nn

from linear_lab.fitting.build import build
from linear_lab.models import LinearModule, MLPModule

X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])


def plain_loop(seed, optimizer, steps, x=X, y=2 * X):
    """The training loop of the tutorial."""
    torch.manual_seed(seed)
    model = nn.Linear(1, 1)
    loss_function = nn.MSELoss()
    optimizer = optimizer(model.parameters())
    for _ in range(steps):
        loss = loss_function(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model, loss.item()


@pytest.mark.parametrize("seed", [2**32 - 1, *slow("one seed is quick", 0, 7)])
@pytest.mark.parametrize("steps", [1, 200])
@pytest.mark.parametrize(
    ("overrides", "optimizer"),
    [
        (["optimizer=sgd", "optimizer.lr=0.01"], lambda p: torch.optim.SGD(p, lr=0.01)),
        (["optimizer=sgd", "optimizer.momentum=0.9"], lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
        (["optimizer=adam", "optimizer.lr=0.05"], lambda p: torch.optim.Adam(p, lr=0.05)),
    ],
)
def test_a_run_equals_the_plain_loop_bit_for_bit(overrides, optimizer, steps, seed, tmp_path):
    overrides = [*overrides, f"seed={seed}", f"trainer.max_epochs={steps}", "trainer.check_val_every_n_epoch=100"]
    result = train(tmp_path, *overrides, "logger=none")
    model, _ = plain_loop(seed, optimizer, steps)
    assert result["parameters"] == {"weight": model.weight.tolist(), "bias": model.bias.tolist()}
    with torch.no_grad():
        assert result["metrics"]["train/loss"] == nn.MSELoss()(model(X), 2 * X).item()
    _, first_loss = plain_loop(seed, optimizer, 1)
    first, _ = plain_loop(seed, lambda p: torch.optim.SGD(p, lr=0.0), 1)
    assert result["first_step"]["loss"] == first_loss
    assert result["first_step"]["gradient"] == {"weight": first.weight.grad.tolist(), "bias": first.bias.grad.tolist()}


def test_forward_of_the_tutorial():
    module = LinearModule(1, 1, weight=0.5636951923370361, bias=0.46575701236724854)
    assert module(torch.tensor([[2.0]])).item() == 1.5931473970413208


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("mse", lambda e: np.mean(e**2)),
        ("mae", lambda e: np.mean(abs(e))),
        ("huber", lambda e: np.mean(np.where(abs(e) < 1, e**2 / 2, abs(e) - 0.5))),
    ],
)
def test_losses_equal_their_formulas(option, expected):
    data, model = build(compose(f"loss={option}", "data=synthetic", "data.targets=2", "data.features=3"))
    x, y = data.parts["train"]
    errors = (model(x) - y).detach().numpy().astype(np.float64)
    assert model._loss((x, y)).item() == pytest.approx(expected(errors), rel=1e-6)


def test_gradient_equals_its_formula():
    data, model = build(compose("data=synthetic", "data.features=3"))
    x, y = data.parts["train"]
    model._loss((x, y)).backward()
    error = x @ model.network.weight.T + model.network.bias - y
    torch.testing.assert_close(model.network.weight.grad, 2 / len(x) * error.T @ x)
    torch.testing.assert_close(model.network.bias.grad, 2 * error.mean(0))


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.slow("like test_the_outcome_says_which_checkpoint_holds_which_step")
def test_full_batch_training_reaches_least_squares(optimizer, tmp_path):
    overrides = ["data=synthetic", "data.features=3", f"optimizer={optimizer}", "optimizer.lr=0.05"]
    result = train(tmp_path, *overrides, "trainer.max_epochs=600", "trainer.check_val_every_n_epoch=600", "logger=none")
    data, _ = build(compose(*overrides))
    x, y = data.parts["train"]
    a = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    optimum = torch.linalg.lstsq(a, y.double()).solution.T
    learned = torch.tensor([[*result["parameters"]["weight"][0], *result["parameters"]["bias"]]], dtype=torch.float64)
    torch.testing.assert_close(learned, optimum, rtol=0, atol=1e-4)


def test_bias_is_off_random_or_given():
    torch.manual_seed(0)
    assert LinearModule(2, 3, bias=False).network.bias is None
    assert LinearModule(2, 3).network.bias.abs().min() > 0
    assert LinearModule(2, 3, bias=0).network.bias.tolist() == [0, 0, 0]
    assert LinearModule(2, 3, bias=[1, 2, 3], weight=4).network.bias.tolist() == [1, 2, 3]
    assert LinearModule(2, 1, weight=[1, 2]).network.weight.tolist() == [[1, 2]]


def test_wrong_shapes_are_refused_with_both_shapes():
    with pytest.raises(ValueError, match=r"weight has shape \(1, 2\), but the data need \(1, 1\)"):
        LinearModule(1, 1, weight=[[1, 2]])
    with pytest.raises(ValueError, match=r"\(8, 1\), got \(8,\)"):  # PyTorch would broadcast them to (8, 8)
        LinearModule(1, 1)._loss((torch.ones(8, 1), torch.ones(8)))


def test_a_checkpoint_loads_without_arguments_and_goes_on(finished):
    path = finished / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    assert checkpoint["hyper_parameters"]["optimizer"]["lr"] == 0.1
    module = LinearModule.load_from_checkpoint(path)
    assert module(torch.tensor([[10.0]])).item() == pytest.approx(20, abs=1e-3)
    assert isinstance(module.configure_optimizers(), torch.optim.SGD)
    trainer = Trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    data, _ = build(compose())
    assert trainer.test(module, data, verbose=False)[0].keys() == {"train/loss", "val/loss", "test/loss"}
    assert trainer.callback_metrics["train/loss"] < 1e-6


def test_any_logger_and_callback_gets_the_metrics(tmp_path):
    data, model = build(compose())
    logger, seen = CSVLogger(tmp_path), []
    callback = Callback()
    callback.on_validation_end = lambda trainer, _: seen.append(dict(trainer.callback_metrics))
    trainer = Trainer(
        max_epochs=4, check_val_every_n_epoch=2, num_sanity_val_steps=0, logger=logger, callbacks=callback,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(model, data)
    measured, *_ = trainer.validate(model, data, verbose=False)
    shown = pl.read_csv(Path(logger.log_dir, "metrics.csv"))
    assert shown["step"].to_list() == [2, 4, 4]
    for name, value in measured.items():
        if name != "step":
            assert shown[name].to_list() == pytest.approx([metrics[name].item() for metrics in seen])
            assert value == seen[-1][name] == seen[-2][name] == trainer.logged_metrics[name]


@pytest.mark.parametrize("target", ["os.system", "torch.nn.functional.mse_loss", "torch.optim.SGD", "this", None])
def test_a_loss_in_a_checkpoint_must_be_a_loss_class(target, tmp_path, finished):
    checkpoint = torch.load(finished / "checkpoints" / "last.ckpt", weights_only=True)
    checkpoint["hyper_parameters"]["loss"] = {"_target_": target, "command": f"touch {tmp_path}/ran"}
    torch.save(checkpoint, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match="is not a subclass of Module"):
        LinearModule.load_from_checkpoint(tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def test_cross_entropy_and_accuracy_equal_their_formulas():
    data, model = build(compose("data=toy_classes", "loss=cross_entropy"))
    x, y = data.parts["train"]
    logits = model(x).detach().numpy().astype(np.float64)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert model._loss((x, y)).item() == pytest.approx(-np.log(p[np.arange(len(y)), y]).mean(), rel=1e-6)
    model._measure((x, y), "train")
    assert model._sums["train/accuracy"] / model._rows["train"] == (logits.argmax(1) == y.numpy()).mean()


def test_the_gradient_of_cross_entropy_equals_its_formula():
    data, model = build(compose("data=toy_classes", "loss=cross_entropy"))
    x, y = data.parts["train"]
    model._loss((x, y)).backward()
    error = (model(x).softmax(1) - torch.nn.functional.one_hot(y, 3)).detach()
    torch.testing.assert_close(model.network.weight.grad, error.T @ x / len(x))
    torch.testing.assert_close(model.network.bias.grad, error.mean(0))


def test_training_separates_the_toy_classes(tmp_path, capsys):
    overrides = ["data=toy_classes", "loss=cross_entropy", "optimizer=adam", "console.steps=1", "data.classes=5"]
    result = train(tmp_path, *overrides)
    assert [result["metrics"][f"{part}/accuracy"] for part in ("train", "val", "test")] == [1, 1, 1]
    assert result["initial"]["train/accuracy"] < 0.8
    assert "mean of -log p[y], p = softmax(y_hat)" in capsys.readouterr().out


@pytest.mark.parametrize("y", [torch.ones(8, 1), torch.ones(8), torch.ones(8, 3), torch.ones(7, dtype=torch.int64)])
def test_cross_entropy_needs_class_indices(y):
    module = LinearModule(1, 3, loss={"_target_": "torch.nn.CrossEntropyLoss"})
    with pytest.raises(ValueError, match=r"y must hold int64 class indices, one per row of y_hat \(8, 3\), got \("):
        module._loss((torch.ones(8, 1), y))


def test_other_losses_need_numbers():
    with pytest.raises(ValueError, match=r"y must hold numbers in the shape of y_hat \(8, 1\), got \(8,\) torch.int64"):
        LinearModule(1, 1)._loss((torch.ones(8, 1), torch.ones(8, dtype=torch.int64)))


def test_a_network_of_layers_computes_its_formula():
    module = MLPModule(2, 1, hidden=[3], activation="tanh")
    first, _, second = module.network
    x = np.array([[0.5, -1.0], [2.0, 3.0]], np.float32)
    w1, b1, w2, b2 = (p.detach().numpy() for p in (first.weight, first.bias, second.weight, second.bias))
    expected = np.tanh(x @ w1.T + b1) @ w2.T + b2
    np.testing.assert_allclose(module(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"hidden": [16, 0]}, r"hidden must be a list of widths of at least 1, as in \[16,16\], got \[16, 0\]"),
        ({"hidden": [1.5]}, r"hidden must be a list .* got \[1.5\]"),
        ({"hidden": 16}, "hidden must be a list .* got 16"),
        ({"activation": "sine"}, "activation must be one of .*tanh.*, got sine"),
        ({"bias": 1}, "bias must be true or false, got 1"),
    ],
)
def test_layers_that_cannot_be_built_are_refused(argument, message):
    with pytest.raises(ValueError, match=message):
        MLPModule(1, 1, **argument)
