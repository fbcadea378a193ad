"""Random numbers of a run, which depend on its seed and the epoch alone."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from linear_lab import compat


class SeedEpochs(Callback):
    """Seeds Python, NumPy and PyTorch before each epoch, from the run's seed and the epoch alone.

    Shuffling, the workers of a DataLoader and dropout therefore repeat themselves in an epoch that is resumed.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.first = 0  # the epoch with which training begins or resumes

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.first = compat.epochs_begun(checkpoint)
        # Lightning may create the iterator of this epoch early, when configure_optimizers needs the number of steps
        seed_all(self.seed, self.first)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch != self.first:
            seed_all(self.seed, trainer.current_epoch)


def seed_all(seed: int, epoch: int = 0) -> None:
    """Seed the generators of Python, NumPy and PyTorch; a DataLoader seeds its workers from PyTorch's."""
    # unlike a sum of seed and epoch, SeedSequence gives neighbouring seeds unrelated numbers
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]) if epoch else seed
    random.seed(mixed)
    np.random.seed(mixed)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed takes a tenth of a short epoch
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(mixed)
