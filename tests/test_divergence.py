"""Divergence: runs whose loss grows without bound."""

import logging
import math
from types import SimpleNamespace

import pytest
import torch
from runs import compose, record, resume, scalars, train

from linear_lab import UserError
from linear_lab.fitting import divergence
from linear_lab.fitting.divergence import rounded_down
from linear_lab.theory.reference import Reference
from linear_lab.tracking.summary import GROWTH


def diverges(folder, *overrides):
    """Train a run that must diverge; return its message and its record."""
    with pytest.raises(UserError) as error:
        train(folder, *overrides)
    result = record(folder)
    assert (result["status"], result["error"]) == ("diverged", str(error.value))
    return result["error"], result


def test_a_diverging_run_stops_at_once_and_says_why(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        message, result = diverges(tmp_path, "optimizer.lr=0.5", "trainer.check_val_every_n_epoch=2")
    assert "optimizer.lr=0.5 is above 0.1198, the largest stable rate" in caplog.text  # before training
    step = result["steps"]
    assert 5 < step < 30
    loss = result["metrics"]["train/loss"]
    assert message.startswith(f"diverged at step {step} (train/loss ")
    assert message.endswith("lr 0.5 is above 0.1198, the largest stable rate for this data; try optimizer.lr=0.1")
    assert loss > 1e12
    assert result["stable_lr"] == pytest.approx(0.119756, abs=1e-6)
    assert result["seconds"] > 0
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == step // 2 * 2 - 2 * (step % 2 == 0)  # the last validation before
    assert all(values.isfinite().all() for values in last["state_dict"].values())
    assert result["best"]["step"] == 2
    curve = scalars(tmp_path)["train/loss"]
    assert curve[-1] == (step, pytest.approx(loss))


def losses_of_steps(folder):
    return scalars(folder)["train/loss_of_step"]


@pytest.mark.slow("like test_a_diverging_run_stops_at_once_and_says_why")
def test_the_losses_of_the_last_fifty_steps_show_how_it_grew(tmp_path):
    rate = 0.1265  # slightly above the largest stable rate, so divergence takes more than fifty steps
    shared = (f"optimizer.lr={rate}", "trainer.max_epochs=500")
    _, result = diverges(tmp_path / "rare", *shared, "trainer.check_val_every_n_epoch=1000")
    steps, curve = result["steps"], losses_of_steps(tmp_path / "rare")
    assert steps > 60
    assert [step for step, _ in curve] == [*range(steps - 49, steps + 1)]
    assert curve[-1][1] > 1e12
    diverges(tmp_path / "often", *shared, "trainer.check_val_every_n_epoch=1")
    measured = dict(scalars(tmp_path / "often")["train/loss"])
    assert curve == [(step, pytest.approx(measured[step - 1], rel=1e-5)) for step, _ in curve]


def test_a_run_that_diverges_early_has_the_losses_of_all_its_steps(tmp_path):
    for logger, last in (("sgd", 8), ("adam", 2)):
        overrides = {"sgd": ["optimizer.lr=0.5"], "adam": ["optimizer=adam", "optimizer.lr=1e30"]}[logger]
        _, result = diverges(tmp_path / logger, *overrides)
        assert result["steps"] == last
    first = result["initial"]["train/loss"]
    assert [step for step, _ in losses_of_steps(tmp_path / "sgd")] == [*range(1, 9)]
    assert losses_of_steps(tmp_path / "adam") == [(1, pytest.approx(first))]  # the next loss is infinite


def test_each_batch_of_a_step_has_a_loss(tmp_path):
    batches = ("data.batch_size=1", "trainer.accumulate_grad_batches=3")  # the fourth of four rows is a step of its own
    diverges(tmp_path, *batches, "optimizer.lr=0.5", "model.weight=0", "model.bias=0")
    curve = losses_of_steps(tmp_path)
    assert [step for step, _ in curve[:7]] == [1, 1, 1, 2, 3, 3, 3]
    assert {loss for _, loss in curve[:3]} < {4, 16, 36, 64}  # y^2


def test_a_run_that_does_not_diverge_has_no_losses_of_steps(tmp_path):
    train(tmp_path, "trainer.max_epochs=3")
    assert "train/loss_of_step" not in scalars(tmp_path)


def test_slow_growth_is_logged_too(tmp_path):
    diverges(tmp_path, "optimizer.lr=0.1205", "trainer.max_epochs=100")
    assert [step for step, _ in losses_of_steps(tmp_path)] == [*range(51, 101)]


def test_a_loss_that_is_not_finite_is_null_in_the_record_and_not_logged(tmp_path):
    message, result = diverges(tmp_path, "optimizer=adam", "optimizer.lr=1e30")
    assert message == "diverged at step 2 (train/loss inf): try a smaller rate than 1e+30, as in optimizer.lr=1e+29"
    assert result["metrics"]["train/loss"] is None
    assert all(math.isfinite(value) for curve in scalars(tmp_path).values() for _, value in curve)


def test_slow_growth_is_divergence_too(tmp_path):
    message, result = diverges(tmp_path, "optimizer.lr=0.1205", "trainer.max_epochs=100")
    assert message.startswith("diverged at step 100")
    assert 1 < result["metrics"]["train/loss"] / result["initial"]["train/loss"] < 1e3


def test_weights_are_kept_where_nothing_was_measured_yet(tmp_path):
    _, result = diverges(tmp_path, "optimizer.lr=0.5")
    last = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["state_dict"]["network.weight"].tolist() == result["parameters"]["weight"]
    assert result["best"] is None


def test_values_that_are_too_large_diverge_before_the_first_step(tmp_path):
    points = "{x: [1, 2], y: [1e30, 2e30]}"
    message, result = diverges(tmp_path, f"data.train={points}", "data.val=null")
    assert message.startswith("diverged before the first step (train/loss inf): the values are too large")
    assert result["steps"] == 0
    assert not (tmp_path / "checkpoints").exists()


def test_below_the_stable_rate_a_small_batch_may_still_diverge(tmp_path):
    points = "{x: [1, 10], y: [2, 20]}"  # the row x = 10 alone allows half the rate of both rows
    message, _ = diverges(tmp_path, f"data.train={points}", "optimizer.lr=0.019", "data.batch_size=1")
    assert "lr 0.019 is below 0.01957, the largest stable rate for all rows together" in message
    assert message.endswith("try optimizer.lr=0.01 or a larger data.batch_size")


def test_no_warning_if_a_scheduler_lowers_the_rate(tmp_path, caplog):
    overrides = ["scheduler=step", "scheduler.step_size=1", "scheduler.gamma=0.5", "optimizer.lr=0.2"]
    assert train(tmp_path, *overrides, "trainer.max_epochs=30")["status"] == "completed"
    assert "stable" not in caplog.text


def test_a_large_start_is_no_divergence(tmp_path):
    overrides = ["model.weight=1e5", "model.bias=-1e5", "optimizer.lr=0.05", "trainer.max_epochs=3"]
    assert train(tmp_path, *overrides)["status"] == "completed"


@pytest.mark.slow("like test_an_old_run_with_a_single_logger_spec_is_resumed")
def test_a_resumed_run_keeps_its_bound(tmp_path):
    train(tmp_path, "trainer.max_epochs=2")
    bound = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["callbacks"]["StopOnDivergence"]
    assert bound["bound"] == pytest.approx(GROWTH * record(tmp_path)["initial"]["train/loss"])
    assert resume(tmp_path, "trainer.max_epochs=3")["status"] == "completed"


def test_a_run_that_diverged_cannot_be_resumed(tmp_path):
    diverges(tmp_path, "optimizer.lr=0.5")
    before = record(tmp_path)
    with pytest.raises(UserError, match=r"the run diverged at step 8 .*; start a new one"):
        resume(tmp_path)
    assert record(tmp_path) == before


def test_only_sgd_on_mse_without_clipping_has_a_stable_rate(tmp_path):
    for k, overrides in enumerate(
        (["optimizer=adam"], ["loss=mae"], ["trainer.gradient_clip_val=1"], ["optimum=false"])
    ):
        result = train(tmp_path / str(k), *overrides, "trainer.max_epochs=1")
        assert result["stable_lr"] is None
        assert (result["optimum"] is None) == (overrides[0] in ("loss=mae", "optimum=false"))
        assert (result["excess_loss"] is None) == (result["optimum"] is None)


@pytest.mark.parametrize(("rate", "expected"), [(0.1198, 0.1), (0.1, 0.09), (1.0, 0.9), (2.6e-7, 2e-7), (3.0, 2.0)])
def test_the_rate_to_try_is_below_the_largest_stable_one(rate, expected):
    assert rounded_down(rate) == expected


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_lbfgs_with_clipping_is_advised_to_leave_it_out(algorithm, tmp_path):
    clipped = ("trainer.gradient_clip_val=0.1", f"trainer.gradient_clip_algorithm={algorithm}", "trainer.max_epochs=20")
    message, _ = diverges(tmp_path, "optimizer=lbfgs", *clipped)
    assert message.endswith("LBFGS does not work with clipped gradients; try trainer.gradient_clip_val=null")


def test_a_run_that_is_worse_than_a_constant_prediction_warns(tmp_path, caplog):
    result = train(tmp_path / "wild", "optimizer.lr=0.11", "loss=huber", "loss.delta=1e9", "trainer.max_epochs=4")
    assert result["status"] == "completed"
    assert "train/loss" not in caplog.text
    wild = train(tmp_path / "grown", "model=mlp", "optimizer.lr=0.1", "trainer.max_epochs=12", "logger=none")
    assert wild["status"] == "completed"
    assert wild["metrics"]["train/loss"] > 10 * wild["initial"]["train/loss"]
    warning = (  # y is 2, 4, 6, 8
        "is above its initial value, and above the 5 of a constant prediction; try a smaller rate, as in optimizer.lr="
    )
    assert f"train/loss {wild['metrics']['train/loss']:.3g} {warning}" in caplog.text


@pytest.mark.parametrize("start", [["model.weight=2", "model.bias=0"], ["model.weight=2.00001", "model.bias=0"]])
def test_a_run_that_leaves_the_optimum_is_still_better_than_a_constant(start, tmp_path, caplog):
    train(tmp_path, *start, "optimizer=adam", "trainer.max_epochs=3", "logger=none")
    assert "constant" not in caplog.text


def test_classes_are_compared_with_equal_logits(tmp_path, caplog):
    classes = ("data=toy_classes", "loss=cross_entropy", "trainer.max_epochs=3", "logger=none")
    assert train(tmp_path / "good", *classes)["status"] == "completed"
    assert "constant" not in caplog.text
    assert train(tmp_path / "bad", *classes, "+optimizer.maximize=true")["status"] == "completed"
    assert "and above the 1.1 of a constant prediction" in caplog.text  # log 3


def test_the_optimum_is_on_by_default():
    assert compose().optimum is True


def test_a_step_without_a_loss_is_no_divergence():
    trainer = SimpleNamespace(accumulate_grad_batches=2, global_step=0)
    losses = {"no": (None, None), "of rows": (torch.ones(2), None), "in a dict": ({"loss": torch.tensor(3.0)}, 6.0)}
    for outputs, expected in losses.values():
        loss = divergence.loss_of(trainer, outputs)
        assert (loss if loss is None else loss.item()) == expected
    callback = divergence.StopOnDivergence(Reference(), "val/loss", "min")
    callback.on_train_batch_end(trainer, None, None)
    assert not callback.losses
