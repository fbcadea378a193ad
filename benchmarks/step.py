"""Measures the time per step of linear_lab, of Lightning's bare Trainer, and of a plain PyTorch loop.

The time per step is the slope between a run of few epochs and one of many. So it includes the validations, curves and
checkpoints of linear_lab, but not the fixed time of a run: pictures are drawn at steps 1, 3, 10, 30 and so on, and both
runs draw equally many. The bare Trainer neither validates nor logs. All use one thread.
"""

import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from functools import cache, partial
from typing import Any

import torch
from hardware import ACCELERATOR, DEVICE, OVERRIDES, finish
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from rounds import Benchmark, Measured
from torch import Tensor, nn

from linear_lab.cli import CONF, register_resolvers
from linear_lab.data import Batches
from linear_lab.fitting import run
from linear_lab.fitting.build import build

MILLION = ("data=synthetic", "data.samples=1000000", "data.features=10", "trainer.check_val_every_n_epoch=1000")
SMALL_BATCHES = ("data=synthetic", "data.samples=100000", "data.features=10", "data.batch_size=256")
LENGTHS = {  # overrides, and few and many epochs
    "four points, all per step": ((), 310, 990),
    "70,000 rows by 10, 256 per step": (
        (*SMALL_BATCHES, "optimizer.lr=0.01", "trainer.check_val_every_n_epoch=2"), 4, 10,
    ),
    "700,000 rows by 10, all per step, no validation": (MILLION, 310, 990),
}  # fmt: skip


class Bare(LightningModule):
    """A linear model with the MSE and SGD, in Lightning, without linear_lab."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the batch."""
        return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def bare_trainer(batches: Iterable[Any], features: int, epochs: int) -> None:
    """Train without logger, validation and callbacks."""
    trainer = Trainer(
        accelerator=ACCELERATOR, devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Bare(features), batches)


def plain_loop(batches: Iterable[tuple[Tensor, Tensor]], features: int, epochs: int) -> None:
    """Train in a plain PyTorch loop."""
    model, loss_function = nn.Linear(features, 1, device=DEVICE), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()


def config(overrides: Iterable[str]) -> Any:
    """Return the config of a run."""
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("train", [*overrides, *OVERRIDES])


@cache
def training_data(overrides: tuple[str, ...]) -> tuple[Batches, int]:
    """Return the batches of the training data, and the number of features."""
    data, _ = build(config(overrides))
    x, y = (values.to(DEVICE) for values in data.parts["train"])
    return Batches(x, y, data.batch_size or len(x), seed=None if data.batch_size is None else 0), x.shape[1]


def on_data(train: Callable[..., None], overrides: tuple[str, ...], epochs: int) -> None:
    """Train on the data of a run, without linear_lab."""
    train(*training_data(overrides), epochs)


def ours(*more: str) -> Callable[[tuple[str, ...], int], None]:
    """Return a function that trains a run of linear_lab, with all its files."""

    def train(overrides: tuple[str, ...], epochs: int) -> None:
        with tempfile.TemporaryDirectory() as folder:
            run.train(config([*overrides, *more, f"trainer.max_epochs={epochs}"]), folder)

    return train


def timed(call: Callable[..., object], *arguments: Any) -> float:
    """Return the seconds that a call takes, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        call(*arguments)
        finish()
        return time.perf_counter() - started


def per_step(train: Callable[..., None], overrides: tuple[str, ...], few: int, many: int) -> Measured:
    """Return the seconds per step."""
    batches, _ = training_data(overrides)
    slope = (timed(train, overrides, many) - timed(train, overrides, few)) / (many - few)
    return Measured(slope / len(batches))


def quiet() -> None:
    """Use one thread, as runs of linear_lab do, and show no warnings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


CONTESTANTS = {
    "plain PyTorch loop": partial(on_data, plain_loop),
    "Lightning's bare Trainer": partial(on_data, bare_trainer),
    "linear_lab, `logger=none`": ours("logger=none"),
    "linear_lab, default": ours(),
}
CASES = {
    case: {name: partial(per_step, train, *lengths) for name, train in CONTESTANTS.items()}
    for case, lengths in LENGTHS.items()
}
BENCHMARK = Benchmark("One step", __doc__, CASES, rounds=3 if ACCELERATOR == "cpu" else 1)

if __name__ == "__main__":
    quiet()
    print(BENCHMARK.markdown(BENCHMARK.measure()))
