"""Gradient accumulation: the gradient of a step is the mean over its rows, as in a plain PyTorch loop."""

import pytest
import torch
from runs import train
from torch import nn

from linear_lab.data import SyntheticData
from linear_lab.data.batches import epoch_order
from linear_lab.fitting.accumulation import scale_gradient

ROWS = ("data=synthetic", "data.samples=10", "data.fractions=[1,0,0]", "data.features=2", "trainer.precision=64-true")


def plain_loop(start, batch_size, batches_per_step, epochs):
    """Return the weights after SGD, where each step takes the rows of several batches at once."""
    data = SyntheticData(samples=10, features=2, fractions=(1, 0, 0))
    data.dtype = torch.float64
    data.setup()
    x, y = data.parts["train"]
    model = nn.Linear(2, 1, dtype=torch.float64)
    model.load_state_dict({name: torch.tensor(start[name], dtype=torch.float64) for name in ("weight", "bias")})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for epoch in range(epochs):
        for rows in epoch_order(0, epoch, len(x)).split(batch_size * batches_per_step):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x[rows]), y[rows]).backward()
            optimizer.step()
    return model.weight.tolist()


@pytest.mark.parametrize(("batch_size", "batches_per_step"), [(4, 4), (4, 2), (4, 3), (3, 2), (1, 4), (5, 2), (10, 7)])
def test_a_step_is_the_mean_over_its_rows(batch_size, batches_per_step, tmp_path):
    """The cases have incomplete last steps, batches of unequal size, and fewer batches than a step has."""
    given = (
        f"data.batch_size={batch_size}",
        f"trainer.accumulate_grad_batches={batches_per_step}",
        "trainer.max_epochs=5",
    )
    result = train(tmp_path, *ROWS, *given, "logger=none")
    expected = plain_loop(result["initial"], batch_size, batches_per_step, 5)
    assert result["parameters"]["weight"] == [pytest.approx(expected[0], rel=1e-12)]


def test_lightnings_accumulation_schedule_gives_the_same_steps(tmp_path):
    """The schedule sets the number of batches when training begins; it is 1 in the config."""
    schedule = "{_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {0: 3}}"
    given = ("data.batch_size=4", "trainer.max_epochs=5", "logger=none")
    scheduled = train(tmp_path / "scheduled", *ROWS, *given, f"+callbacks.together={schedule}")
    fixed = train(tmp_path / "fixed", *ROWS, *given, "trainer.accumulate_grad_batches=3")
    assert scheduled["parameters"] == fixed["parameters"]


def test_parameters_without_a_gradient_are_left_alone():
    module = nn.ModuleDict({"used": nn.Linear(1, 1), "unused": nn.Linear(1, 1)})
    module["used"](torch.tensor([[3.0]])).sum().backward()
    scale_gradient(module, 0.5)
    assert (module["used"].weight.grad.item(), module["used"].bias.grad.item()) == (1.5, 0.5)
    assert module["unused"].weight.grad is None
