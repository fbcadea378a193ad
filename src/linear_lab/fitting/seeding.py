"""Random numbers of a run: a function of its seed and the epoch."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from linear_lab import compat


class SeedEpochs(Callback):
    """Seeds Python, NumPy and PyTorch before each epoch, from the run's seed and the epoch alone.

    So shuffling, the workers of a DataLoader, and dropout do in a resumed epoch what they would have done.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.first = 0  # the epoch with which this training begins

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.first = compat.epochs_begun(checkpoint)
        # of this epoch, Lightning makes the iterator when it, or configure_optimizers, asks how many steps there are
        seed_all(self.seed, self.first)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch != self.first:
            seed_all(self.seed, trainer.current_epoch)


def seed_all(seed: int, epoch: int = 0) -> None:
    """Seed the generators of Python, NumPy and PyTorch; a DataLoader seeds its workers from the last."""
    # SeedSequence mixes the two numbers, so that neighbouring seeds share no epoch's numbers
    mixed = int(np.random.SeedSequence((seed, epoch)).generate_state(1)[0]) if epoch else seed
    random.seed(mixed)
    np.random.seed(mixed)
    torch.default_generator.manual_seed(mixed)  # torch.manual_seed takes a tenth of a short epoch
    if torch.cuda.is_available():
        torch.cuda.manual_seed_all(mixed)
