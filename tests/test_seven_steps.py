"""The seven steps have the numbers of the run."""

import re

import pytest
from lightning.pytorch import Callback
from runs import train


def test_the_first_step_of_lbfgs_begins_with_the_first_loss(tmp_path):
    result = train(tmp_path, "optimizer=lbfgs", "trainer.max_epochs=1")
    assert result["first_step"]["loss"] == pytest.approx(result["initial"]["train/loss"])


def test_seven_steps_have_the_numbers_of_the_run(tmp_path, capsys):
    result = train(tmp_path, "experiment=autograd")
    out = capsys.readouterr().out
    assert [line[0] for line in out.splitlines() if re.match(r"[1-9] ", line)] == list("1234567")
    for words in (
        "1 model", "2 loss", "3 optimizer", "4 forward", "5 loss value", "6 backward", "7 update",
        "x (1, 1) -> y_hat (1, 1), y (1, 1)", "loss = 1\n", "dloss/dW = -2",
        "W <- W - 0.1 * dloss/dW = 1 - 0.1 * (-2) = 1.2",
    ):  # fmt: skip
        assert words in re.sub(r" +\n", "\n", out), words
    assert result["parameters"]["weight"] == [[pytest.approx(1.2)]]


def test_steps_show_those_of_any_run(tmp_path, capsys):
    train(
        tmp_path, "data=synthetic", "data.features=2", "data.targets=2", "data.batch_size=16", "optimizer=adam",
        "loss=mae", "console.steps=2", "trainer.max_epochs=1",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert "Step 1\n" in out
    assert "Step 2\n" in out
    assert "Step 3\n" not in out
    assert "x (16, 2) -> y_hat (16, 2), y (16, 2)" in out
    assert "step of the optimizer" in out


def test_other_optimizers_show_the_step_they_took(tmp_path, capsys):
    train(tmp_path, "experiment=autograd", "optimizer=adam")
    assert "W <- W + step of the optimizer = 1 + (0.1) = 1.1" in capsys.readouterr().out  # Adam's first step is lr


@pytest.mark.parametrize(("batch_size", "together", "said"), [(2, 2, 2), (2, 3, 2), (1, 3, 3), ("null", 2, 1)])
def test_a_step_of_several_batches_says_of_how_many(batch_size, together, said, tmp_path, capsys):
    given = (f"data.batch_size={batch_size}", f"trainer.accumulate_grad_batches={together}", "logger=none")
    train(tmp_path, "experiment=notebook", *given)
    found = re.findall(r"the last of (\d+) batches", re.sub(r"\s+", " ", capsys.readouterr().out))
    assert found == ([str(said)] if said > 1 else [])


def test_a_loss_is_that_of_the_rows_shown(tmp_path):
    plain = train(tmp_path / "one", "experiment=notebook")
    doubled = train(tmp_path / "two", "experiment=notebook", "trainer.accumulate_grad_batches=2")
    assert doubled["first_step"] == plain["first_step"]


class Looks(Callback):
    """Runs the network where it is no part of a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module(batch[0])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module(batch[0])


@pytest.mark.parametrize("given", [["logger=tensorboard"], [f"+callbacks.looks._target_={__name__}.Looks"]])
def test_forward_passes_that_others_make_are_not_those_of_the_step(given, tmp_path, capsys):
    plain = train(tmp_path / "plain", "console.steps=4", "trainer.max_epochs=4", "logger=none")
    expected = capsys.readouterr().out
    result = train(tmp_path / "other", "console.steps=4", "trainer.max_epochs=4", *given)
    assert "in this step" not in (shown := capsys.readouterr().out)
    assert result["first_step"] == plain["first_step"]
    assert re.findall(r"y_hat.*|\d loss value.*", shown)[1:] == re.findall(r"y_hat.*|\d loss value.*", expected)[1:]


def test_lbfgs_says_that_a_step_evaluates_the_loss_more_than_once(tmp_path, capsys):
    train(tmp_path, "optimizer=lbfgs", "console.steps=1", "trainer.max_epochs=1")
    assert re.search(r"the first of \d+ in this step", re.sub(r"\s+", " ", capsys.readouterr().out))
