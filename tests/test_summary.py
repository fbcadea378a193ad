"""First and best numbers of models while they train, against values by hand."""

import math

import pytest
import torch
from runs import record, scalars, train

from linear_lab.tracking.summary import GROWTH, Summary


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_first_best_and_small_of_each_model():
    summary = Summary(3, "val/loss", "min")
    summary.after_validation(0, {"val/loss": numbers(1, 2, 3)}, numbers(100, 100, 100), {"w": numbers(0, 0, 0)})
    assert summary.first["val/loss"].tolist() == [1, 2, 3]
    assert summary.best_step.tolist() == [-1, -1, -1]  # the untouched model does not count
    summary.after_validation(5, {"val/loss": numbers(9, 1, 2)}, numbers(1.0, 1.1, 50), {"w": numbers(5, 6, 7)})
    summary.after_validation(9, {"val/loss": numbers(8, 1, 3)}, numbers(0.5, 0.9, 40), {"w": numbers(8, 9, 10)})
    assert summary.best.tolist() == [8, 1, 2]
    assert summary.best_step.tolist() == [9, 5, 5]  # the first of equal values
    assert summary.parameters["w"].tolist() == [8, 6, 7]
    assert summary.small_at.tolist() == [5, 9, -1]  # at most 1 % of 100
    assert summary.alive.all()


def test_higher_is_better_where_the_mode_says_so():
    summary = Summary(2, "val/accuracy", "max")
    for step, values in enumerate([numbers(0.9, 0.1), numbers(0.5, 0.6), numbers(0.7, 0.2)]):
        summary.after_validation(step, {"val/accuracy": values}, numbers(1, 1))
    assert summary.best.tolist() == [0.7, 0.6]
    assert summary.best_step.tolist() == [2, 1]


@pytest.mark.parametrize("first", [0.5, 3.0])
def test_a_loss_beyond_its_bound_is_divergence(first):
    summary = Summary(4, "train/loss", "min")
    assert not summary.after_step(1, numbers(first, first, first, first))
    bound = GROWTH * max(first, 1.0)
    assert summary.bound.tolist() == [bound] * 4
    assert not summary.after_step(2, numbers(bound, 0, 0, 0))
    assert summary.after_step(3, numbers(bound * 1.001, math.nan, -math.inf, 1))
    assert not summary.after_step(4, numbers(math.inf, math.inf, math.inf, 1))  # a divergence is noted once
    assert summary.diverged_at.tolist() == [3, 3, 3, -1]
    assert summary.alive.tolist() == [False, False, False, True]
    assert summary.diverged_value[0] == bound * 1.001
    summary.after_validation(5, {"train/loss": numbers(0, 0, 0, 1)}, numbers(1, 1, 1, 1))
    assert summary.best_step.tolist() == [-1, -1, -1, 5]  # models that have diverged no longer count


def test_a_metric_that_is_not_finite_is_divergence():
    summary = Summary(2, "train/loss", "min")
    measured = {"train/loss": numbers(1, 1), "val/loss": numbers(math.nan, 2)}
    assert summary.after_validation(7, measured, numbers(1, 1))
    assert summary.metrics[summary.diverged_by[0]] == "val/loss"
    assert summary.diverged_at.tolist() == [7, -1]


def test_many_models_are_followed_like_one_alone():
    generator = torch.Generator().manual_seed(0)
    losses = 10 ** torch.randn(40, 6, generator=generator, dtype=torch.float64).mul(4)

    def followed(columns):
        summary = Summary(columns.shape[1], "val/loss", "min")
        for step, values in enumerate(columns):
            if step:
                summary.after_step(step, values * 1e3)
            summary.after_validation(step, {"val/loss": values}, values, {"w": values + 1})
        return summary

    together = followed(losses)
    for job in range(6):
        alone = followed(losses[:, job : job + 1])
        for name in ("best", "best_step", "small_at", "diverged_at", "diverged_value"):
            torch.testing.assert_close(getattr(together, name)[job], getattr(alone, name)[0], equal_nan=True)
        assert together.parameters["w"][job] == alone.parameters["w"][0]


def test_a_summary_is_restored_from_a_checkpoint(tmp_path):
    summary = Summary(2, "val/loss", "min")
    summary.after_validation(0, {"val/loss": numbers(5, 6)}, numbers(7, 8), {"w": numbers(0, 0)})
    summary.after_step(1, numbers(1, math.nan))
    summary.after_validation(2, {"val/loss": numbers(1, 2)}, numbers(1, 2), {"w": numbers(3, 4)})
    torch.save(summary.state_dict(), tmp_path / "state")
    other = Summary(2, "train/loss", "max")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert repr(vars(other)) == repr(vars(summary))


def test_the_curves_of_a_run_agree_with_its_summary(tmp_path):
    train(
        tmp_path,
        "optimizer.lr=0.05",
        "trainer.max_epochs=40",
        "logger=tensorboard",
        "logger.tensorboard.pictures=false",
    )
    curves, steps = scalars(tmp_path), record(tmp_path)["steps"]
    first = curves["train/excess"][0][1]
    small = next(step for step, value in curves["train/excess"] if value <= 0.01 * first)
    assert dict(curves["hp/steps_above_1_percent"])[steps] == small
    after = [value for step, value in curves["val/loss"] if step]
    assert curves["hp/best_val_loss"][-1][1] == min(after)


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_a_new_summary_has_no_values(mode, worst):
    summary = Summary(2, "val/loss", mode)
    summary.note_small(3, numbers(0, 0))  # there is no first loss yet
    assert summary.best.tolist() == [worst] * 2
    assert summary.diverged_value.isnan().all()
    for steps in (summary.best_step, summary.small_at, summary.diverged_at, summary.diverged_by):
        assert steps.tolist() == [-1, -1]
    assert (summary.first, summary.parameters, summary.bound, summary.metrics) == ({}, {}, None, [])
    elsewhere = Summary(2, "val/loss", mode, "meta")
    assert (elsewhere.best.dtype, elsewhere.diverged_value.dtype) == (torch.float64, torch.float64)
    assert {values.device.type for values in vars(elsewhere).values() if isinstance(values, torch.Tensor)} == {"meta"}


def test_the_metric_that_showed_a_divergence_is_named():
    summary = Summary(3, None, "min")
    first = {"train/loss": numbers(1, 1, 1), "val/loss": numbers(1, 1, 1), "val/accuracy": numbers(1, math.nan, 1)}
    assert not summary.after_validation(0, first, numbers(1, 1, 1))  # accuracy is no loss
    assert not summary.after_step(3, numbers(1, 1, 1))
    assert summary.after_step(4, numbers(1, math.inf, 1))
    assert summary.metrics == ["train/loss"]
    assert summary.after_validation(5, first | {"val/loss": numbers(1, 1, math.inf)}, numbers(1, 1, 1))
    assert summary.metrics == ["train/loss", "val/loss"]
    assert summary.after_step(6, numbers(math.nan, 1, 1))
    assert summary.metrics == ["train/loss", "val/loss"]
    assert summary.diverged_by.tolist() == [0, 0, 1]
    assert summary.diverged_at.tolist() == [6, 4, 5]
    assert not summary.alive.any()


@pytest.mark.parametrize("mode", ["min", "max"])
def test_of_equal_values_the_first_is_best_with_all_its_parameters(mode):
    summary = Summary(2, "metric", mode)
    matrices = [torch.full((2, 3, 2), step, dtype=torch.float64) for step in range(3)]
    for step, (values, matrix) in enumerate(zip([numbers(0, 0), numbers(7, 7), numbers(7, 7)], matrices, strict=True)):
        summary.after_validation(step, {"metric": values}, numbers(1, 1), {"weight": matrix, "scale": values})
    assert summary.best_step.tolist() == [1, 1]
    assert torch.equal(summary.parameters["weight"], matrices[1])
    better = numbers(8, 6) if mode == "max" else numbers(6, 8)
    summary.after_validation(4, {"metric": better}, numbers(1, 1), {"weight": 9 * matrices[1], "scale": better})
    assert summary.best_step.tolist() == [4, 1]
    assert torch.equal(summary.parameters["weight"], torch.stack([9 * matrices[1][0], matrices[1][1]]))
    assert summary.parameters["scale"].tolist() == [better[0], 7]


def test_the_step_at_which_a_loss_became_small_is_the_first_one():
    summary = Summary(2, None, "min")
    summary.after_validation(0, {}, numbers(0, 100))
    for step, loss in ((0, 100.0), (1, 1.01), (5, 1.0), (6, 0.5)):
        summary.note_small(step, numbers(0, loss))
    assert summary.small_at.tolist() == [0, 5]
