"""The seven steps have the numbers of the run."""

import functools
import io
import re

import pytest
from lightning.pytorch import Callback
from runs import train

from linear_lab.terminal import layout


def test_the_first_step_of_lbfgs_begins_with_the_first_loss(tmp_path):
    result = train(tmp_path, "optimizer=lbfgs", "trainer.max_epochs=1")
    assert result["first_step"]["loss"] == pytest.approx(result["initial"]["train/loss"])


def test_seven_steps_have_the_numbers_of_the_run(tmp_path, capsys):
    result = train(tmp_path, "experiment=autograd")
    out = capsys.readouterr().out
    assert [line[0] for line in out.splitlines() if re.match(r"[1-9] ", line)] == list("1234567")
    for words in (
        "Before training\n", "1 define the model", "2 choose the loss", "3 choose the optimizer",
        "Training step 1\n", "4 forward pass", "5 compute the loss", "6 backward pass", "7 update the weights",
        "x (1, 1) -> y_hat (1, 1), y (1, 1)", "loss = 1\n", "dloss/dW = -2", "W <- W - lr * dloss/dW\n",
        " = 1 - 0.1 * (-2)\n", " = 1.2\n",
    ):  # fmt: skip
        assert words in re.sub(r" +\n", "\n", out), words
    assert result["parameters"]["weight"] == [[pytest.approx(1.2)]]


def test_steps_show_those_of_any_run(tmp_path, capsys):
    train(
        tmp_path, "data=synthetic", "data.features=2", "data.targets=2", "data.batch_size=16", "optimizer=adam",
        "loss=mae", "console.steps=2", "trainer.max_epochs=1",
    )  # fmt: skip
    out = capsys.readouterr().out
    assert re.findall(r"Before training|Training step \d", out) == [
        "Before training",
        *map("Training step {}".format, "12"),
    ]
    assert [line[0] for line in out.splitlines() if re.match(r"[1-9] ", line)] == list("12345674567")
    assert "x (16, 2) -> y_hat (16, 2), y (16, 2)" in out
    assert "change = -lr * mean(gradient) / sqrt(mean(gradient^2))" in out


def test_other_optimizers_show_the_step_they_took(tmp_path, capsys):
    train(tmp_path, "experiment=autograd", "optimizer=adam")
    out = " ".join(capsys.readouterr().out.split())
    assert "W <- W + change = 1 + 0.1 = 1.1" in out  # Adam's first step is lr


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["optimizer=sgd", "optimizer.momentum=0.9"], ["change = -lr * v, v = momentum * previous v + gradient"]),
        (
            ["optimizer=sgd", "optimizer.momentum=0.9", "optimizer.nesterov=true", "optimizer.lr=0.01"],
            ["change = what SGD computes"],
        ),
        (
            ["optimizer=sgd", "optimizer.weight_decay=0.1"],
            ["change = -lr * gradient ", "adds weight_decay * weight to"],
        ),
        (
            ["optimizer=sgd", "trainer.gradient_clip_val=1"],
            ["change = -lr * gradient ", "The gradient is clipped first."],
        ),
        (["optimizer=adamw"], ["mean(gradient^2)", "adds -lr * weight_decay * weight to it"]),
        (["optimizer=rmsprop"], ["change = -lr * gradient / sqrt(mean(gradient^2))"]),
        (["optimizer=rmsprop", "optimizer.momentum=0.9"], ["change = what RMSprop computes"]),
        (["optimizer=lbfgs"], ["change = what LBFGS computes from the gradients"]),
    ],
)
def test_the_update_says_how_an_optimizer_computes_the_change(given, said, tmp_path, capsys):
    train(tmp_path, *given, "console.steps=1", "trainer.max_epochs=1", "logger=none")
    out = " ".join(capsys.readouterr().out.split())
    assert all(words in out for words in [*said, "W <- W + change = "]), out


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "rmsprop"])
@pytest.mark.slow("like test_the_update_says_how_an_optimizer_computes_the_change")
def test_no_line_of_the_steps_is_wrapped_in_80_columns(loss, optimizer, tmp_path, monkeypatch):
    given = ("data=synthetic", "optimizer.weight_decay=0.1", "console.steps=1", "trainer.max_epochs=1", "logger=none")
    shown = {}
    for width in (80, 200):
        file = io.StringIO()
        monkeypatch.setattr(layout, "screen", functools.partial(layout.screen, file, width))
        train(tmp_path / str(width), f"optimizer={optimizer}", f"loss={loss}", *given)
        steps = file.getvalue().partition("Before training")[2].partition("training  step")[0]
        shown[width] = [line.rstrip() for line in steps.splitlines()]
        monkeypatch.undo()
    assert shown[80] == shown[200]


def test_a_narrow_terminal_has_the_names_of_the_steps_above_their_numbers(tmp_path, monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(layout, "screen", lambda: layout.Screen(file=file, width=40, highlight=False, markup=False))
    train(tmp_path, "experiment=notebook")
    lines = [line.rstrip() for line in file.getvalue().splitlines()]
    assert lines[lines.index("5 compute the loss") + 1] == "loss = 25.1283"


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


LINES = r"y_hat.*|\d compute the loss.*"


class Looks(Callback):
    """Runs the network where it is no part of a step."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module(batch[0])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        pl_module(batch[0])


@pytest.mark.parametrize("given", [["logger=tensorboard"], [f"+callbacks.looks._target_={__name__}.Looks"]])
@pytest.mark.slow("like test_a_batch_that_takes_no_step_adds_no_point_and_no_picture")
def test_forward_passes_that_others_make_are_not_those_of_the_step(given, tmp_path, capsys):
    plain = train(tmp_path / "plain", "console.steps=4", "trainer.max_epochs=4", "logger=none")
    expected = capsys.readouterr().out
    result = train(tmp_path / "other", "console.steps=4", "trainer.max_epochs=4", *given)
    assert "in this step" not in (shown := capsys.readouterr().out)
    assert result["first_step"] == plain["first_step"]
    assert re.findall(LINES, shown)[1:] == re.findall(LINES, expected)[1:]


def test_lbfgs_says_that_a_step_evaluates_the_loss_more_than_once(tmp_path, capsys):
    train(tmp_path, "optimizer=lbfgs", "console.steps=1", "trainer.max_epochs=1")
    assert re.search(r"the first of \d+ evaluations in this step", re.sub(r"\s+", " ", capsys.readouterr().out))
