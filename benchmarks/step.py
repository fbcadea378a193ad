"""Measures the time per step of linear_lab, of Lightning's bare Trainer, and of a plain PyTorch loop.

Each round trains with all of them, for few epochs and for many. The time per step is the slope between the two, which
includes validations and checkpoints; the rest is the fixed time of a run. Pictures are drawn at steps 1, 3, 10, 30 and
so on; both lengths have the same number of pictures, whose time is thus part of the fixed time. The table shows medians
over the rounds, and the ratio to the bare Trainer within a round: the median, the smallest and the largest.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from hardware import ACCELERATOR, DEVICE, OVERRIDES, finish
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from linear_lab.cli import CONF, register_resolvers
from linear_lab.data import Batches
from linear_lab.data.datamodule import EVALUATION_ROWS
from linear_lab.fitting import run
from linear_lab.fitting.build import build

ROUNDS = 3
X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])
ROWS = ["data=synthetic", "data.samples=100000", "data.features=10"]
CASES: dict[str, tuple[list[str], tuple[int, int]]] = {  # overrides, and few and many epochs
    "four points, all per step": ([], (1010, 2990)),
    "70,000 rows by 10, all per step": (ROWS, (310, 990)),
    "70,000 rows by 10, 256 per step": (
        [*ROWS, "data.batch_size=256", "optimizer.lr=0.01", "trainer.check_val_every_n_epoch=2"],
        (4, 10),
    ),
}
BARE = "bare Trainer"


class Bare(LightningModule):
    """A linear model with the MSE and SGD, in Lightning, without linear_lab."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the batch."""
        return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the loss of a part of the data."""
        self.log("loss", nn.functional.mse_loss(self.linear(batch[0]), batch[1]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Return SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.01)


def bare_trainer(batches: Iterable[Any], features: int, epochs: int, parts: Sequence[Any] = (), every: int = 1) -> None:
    """Train without logger and callbacks; measure ``parts``, if given, every ``every`` epochs."""
    trainer = Trainer(
        accelerator=ACCELERATOR, devices=1, max_epochs=epochs, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, check_val_every_n_epoch=every, num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(Bare(features), batches, list(parts) or None)


def plain_loop(
    batches: Iterable[tuple[Tensor, Tensor]],
    features: int,
    epochs: int,
    kind: type[torch.optim.Optimizer] = torch.optim.SGD,
    lr: float = 0.01,
) -> None:
    """Train in a plain PyTorch loop."""
    model, loss_function = nn.Linear(features, 1, device=DEVICE), nn.MSELoss()
    optimizer = kind(model.parameters(), lr=lr)  # type: ignore[call-arg]
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            loss = loss_function(model(x), y)
            loss.backward()
            optimizer.step()


def ours(overrides: list[str], epochs: int) -> None:
    """Train a run of linear_lab, with all its files."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", [*overrides, *OVERRIDES, f"trainer.max_epochs={epochs}"])
    with tempfile.TemporaryDirectory() as folder:
        run.train(cfg, folder)


def contestants(overrides: list[str]) -> tuple[dict[str, Callable[[int], None]], int]:
    """Return functions that train for a number of epochs, by name; and the number of batches per epoch."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose("train", overrides)
    data, _ = build(cfg)
    (x, y), val = ([values.to(DEVICE) for values in data.parts[name]] for name in ("train", "val"))
    parts = [Batches(*part, EVALUATION_ROWS, seed=None) for part in ((x, y), val)]
    every = cfg.trainer.check_val_every_n_epoch
    batches = Batches(x, y, data.batch_size or len(x), seed=None if data.batch_size is None else 0)
    return {
        "plain PyTorch loop": lambda epochs: plain_loop(batches, x.shape[1], epochs),
        BARE: lambda epochs: bare_trainer(batches, x.shape[1], epochs),
        "bare Trainer that validates": lambda epochs: bare_trainer(batches, x.shape[1], epochs, parts, every),
        "linear_lab, default": lambda epochs: ours(overrides, epochs),
        "linear_lab, logger=none": lambda epochs: ours([*overrides, "logger=none"], epochs),
    }, len(batches)


def timed(call: Callable[..., None], *arguments: Any) -> float:
    """Return the seconds that a call takes, without its output."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        started = time.perf_counter()
        call(*arguments)
        finish()
        return time.perf_counter() - started


def quiet() -> None:
    """Use one thread, as runs of linear_lab do, and show no warnings."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def table() -> Table:
    """Measure all cases, and return the table."""
    quiet()
    register_resolvers()
    shown = Table(title=f"steps, medians of {ROUNDS} rounds, 1 thread")
    for heading in ("", "us per step", "time relative to the bare Trainer", "smallest to largest", "fixed, seconds"):
        shown.add_column(heading, justify="right" if heading else "left")
    for case, (overrides, lengths) in CASES.items():
        shown.add_row(case, style="bold")
        trainers, batches_per_epoch = contestants(overrides)
        steps = [epochs * batches_per_epoch for epochs in lengths]
        slopes: dict[str, list[float]] = {name: [] for name in trainers}
        fixed: dict[str, list[float]] = {name: [] for name in trainers}
        for train in trainers.values():  # warm-up
            timed(train, 2)
        for _ in range(ROUNDS):
            for name, train in trainers.items():
                few, many = (timed(train, epochs) for epochs in lengths)
                slopes[name].append((many - few) / (steps[1] - steps[0]))
                fixed[name].append(few - slopes[name][-1] * steps[0])
        for name, times in slopes.items():
            ratios = [one / bare for one, bare in zip(times, slopes[BARE], strict=True)]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            median, rest = statistics.median(times), statistics.median(fixed[name])
            shown.add_row(f"  {name}", f"{median * 1e6:.0f}", f"{statistics.median(ratios):.2f}", spread, f"{rest:.2f}")
    return shown


if __name__ == "__main__":
    Console().print(table())
