"""What is remembered of models while they train, by hand."""

import math

import pytest
import torch
from runs import record, scalars, train

from linear_lab.tracking.summary import GROWTH, Summary


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def test_first_best_and_small_of_each_model():
    found = Summary(3, "val/loss", "min")
    found.after_validation(0, {"val/loss": numbers(1, 2, 3)}, numbers(100, 100, 100), {"w": numbers(0, 0, 0)})
    assert found.first["val/loss"].tolist() == [1, 2, 3]
    assert found.best_step.tolist() == [-1, -1, -1]  # the untouched model does not count
    found.after_validation(5, {"val/loss": numbers(9, 1, 2)}, numbers(1.0, 1.1, 50), {"w": numbers(5, 6, 7)})
    found.after_validation(9, {"val/loss": numbers(8, 1, 3)}, numbers(0.5, 0.9, 40), {"w": numbers(8, 9, 10)})
    assert found.best.tolist() == [8, 1, 2]
    assert found.best_step.tolist() == [9, 5, 5]  # of equal ones the first
    assert found.parameters["w"].tolist() == [8, 6, 7]
    assert found.small_at.tolist() == [5, 9, -1]  # at most 1 % of 100
    assert found.alive.all()


def test_higher_is_better_where_the_mode_says_so():
    found = Summary(2, "val/accuracy", "max")
    for step, values in enumerate([numbers(0.9, 0.1), numbers(0.5, 0.6), numbers(0.7, 0.2)]):
        found.after_validation(step, {"val/accuracy": values}, numbers(1, 1))
    assert found.best.tolist() == [0.7, 0.6]
    assert found.best_step.tolist() == [2, 1]


@pytest.mark.parametrize("first", [0.5, 3.0])
def test_a_loss_beyond_its_bound_is_divergence(first):
    found = Summary(4, "train/loss", "min")
    assert not found.after_step(1, numbers(first, first, first, first))
    bound = GROWTH * max(first, 1.0)
    assert found.bound.tolist() == [bound] * 4
    assert not found.after_step(2, numbers(bound, 0, 0, 0))
    assert found.after_step(3, numbers(bound * 1.001, math.nan, -math.inf, 1))
    assert not found.after_step(4, numbers(math.inf, math.inf, math.inf, 1))  # each is noted once
    assert found.diverged_at.tolist() == [3, 3, 3, -1]
    assert found.alive.tolist() == [False, False, False, True]
    assert found.diverged_value[0] == bound * 1.001
    found.after_validation(5, {"train/loss": numbers(0, 0, 0, 1)}, numbers(1, 1, 1, 1))
    assert found.best_step.tolist() == [-1, -1, -1, 5]  # those that have diverged count no more


def test_a_metric_that_is_not_finite_is_divergence():
    found = Summary(2, "train/loss", "min")
    measured = {"train/loss": numbers(1, 1), "val/loss": numbers(math.nan, 2)}
    assert found.after_validation(7, measured, numbers(1, 1))
    assert found.metrics[found.diverged_by[0]] == "val/loss"
    assert found.diverged_at.tolist() == [7, -1]


def test_many_models_are_each_as_one_alone():
    generator = torch.Generator().manual_seed(0)
    losses = 10 ** torch.randn(40, 6, generator=generator, dtype=torch.float64).mul(4)

    def followed(columns):
        found = Summary(columns.shape[1], "val/loss", "min")
        for step, values in enumerate(columns):
            if step:
                found.after_step(step, values * 1e3)
            found.after_validation(step, {"val/loss": values}, values, {"w": values + 1})
        return found

    together = followed(losses)
    for job in range(6):
        alone = followed(losses[:, job : job + 1])
        for name in ("best", "best_step", "small_at", "diverged_at", "diverged_value"):
            torch.testing.assert_close(getattr(together, name)[job], getattr(alone, name)[0], equal_nan=True)
        assert together.parameters["w"][job] == alone.parameters["w"][0]


def test_what_a_checkpoint_keeps_restores_it(tmp_path):
    found = Summary(2, "val/loss", "min")
    found.after_validation(0, {"val/loss": numbers(5, 6)}, numbers(7, 8), {"w": numbers(0, 0)})
    found.after_step(1, numbers(1, math.nan))
    found.after_validation(2, {"val/loss": numbers(1, 2)}, numbers(1, 2), {"w": numbers(3, 4)})
    torch.save(found.state_dict(), tmp_path / "state")
    other = Summary(2, "train/loss", "max")
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert repr(vars(other)) == repr(vars(found))


def test_a_run_shows_what_its_summary_has(tmp_path):
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
