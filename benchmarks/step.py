"""Steps a second on the four points: ours against the plain PyTorch loop and the bare Trainer, side by side.

Each round times all of them one after the other; the table shows the median over rounds, and the ratio to the plain
loop with the smallest and largest ratio of a round.
"""

import contextlib
import io
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable

import torch
from hydra import compose, initialize_config_dir
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from linear_lab import experiment
from linear_lab.cli import CONF, register_resolvers
from linear_lab.data import Batches

STEPS, ROUNDS = 500, 7
X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])


def plain_loop() -> None:
    """Train as the tutorial does."""
    model, loss_function = nn.Linear(1, 1), nn.MSELoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = loss_function(model(X), 2 * X)
        loss.backward()
        optimizer.step()


class Bare(LightningModule):
    """The same in Lightning, with nothing around it."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(1, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the batch."""
        return nn.functional.mse_loss(self.linear(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Choose SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.1)


def bare_trainer() -> None:
    """Train without logger, callbacks and measures."""
    trainer = Trainer(
        accelerator="cpu", max_epochs=STEPS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Bare(), Batches(X, 2 * X, batch_size=4))


def ours(cfg: DictConfig) -> Callable[[], None]:
    """Train with all that a run leaves."""

    def train() -> None:
        with tempfile.TemporaryDirectory() as folder:
            experiment.train(cfg, folder)

    return train


def main() -> None:
    """Print the table."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    register_resolvers()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        configs = {name: compose("train", overrides) for name, overrides in {
            "linear_lab, default": [f"trainer.max_epochs={STEPS}"],
            "linear_lab, logger=none": [f"trainer.max_epochs={STEPS}", "logger=none"],
        }.items()}  # fmt: skip
    contestants = {"plain PyTorch loop": plain_loop, "bare Trainer": bare_trainer}
    contestants |= {name: ours(cfg) for name, cfg in configs.items()}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for round_ in range(ROUNDS + 1):
        for name, train in contestants.items():
            started = time.perf_counter()
            with contextlib.redirect_stdout(io.StringIO()):
                train()
            if round_:  # the first warms up
                times[name].append(time.perf_counter() - started)
    table = Table(title=f"{STEPS} steps on four points, {ROUNDS} rounds, {torch.get_num_threads()} threads")
    for heading in ("", "us a step", "steps a second", "times the plain loop", "smallest to largest"):
        table.add_column(heading, justify="left" if not heading else "right")
    for name, seconds in times.items():
        ratios = [one / plain for one, plain in zip(seconds, times["plain PyTorch loop"], strict=True)]
        median = statistics.median(seconds) / STEPS
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(name, f"{median * 1e6:.0f}", f"{1 / median:.0f}", f"{statistics.median(ratios):.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
