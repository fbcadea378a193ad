"""Modules and data of a user, which derive from no class of this project."""

import random

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


class Net(LightningModule):
    """A classifier with dropout that configures its own optimizer, and logs under its own names."""

    def __init__(self, width=8, lr=0.05, scheduler="step", nan_in=None):
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, 3))

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.layers(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True, prog_bar=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self.layers(batch[0])
        self.log("val/loss", nn.functional.cross_entropy(logits, batch[1]))
        hits = (logits.argmax(1) == batch[1]).float().mean()
        known = (
            self.trainer.sanity_checking or self.trainer.state.fn != "fit" or self.current_epoch != self.hparams.nan_in
        )
        self.log("val/hits", hits if known else hits * float("nan"))

    def test_step(self, batch, batch_idx):
        self.log("test/hits", (self.layers(batch[0]).argmax(1) == batch[1]).float().mean())

    def configure_optimizers(self):
        optimizer, kinds = torch.optim.Adam(self.parameters(), lr=self.hparams.lr), torch.optim.lr_scheduler
        if self.hparams.scheduler == "plateau":
            scheduler = {
                "scheduler": kinds.ReduceLROnPlateau(optimizer, patience=0, threshold=1),
                "monitor": "val/loss",
            }
        elif self.hparams.scheduler == "one_cycle":
            steps = self.trainer.estimated_stepping_batches
            scheduler = {"scheduler": kinds.OneCycleLR(optimizer, 0.1, steps), "interval": "step"}
        else:
            scheduler = {"scheduler": kinds.StepLR(optimizer, 1, gamma=0.9)}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}


class Fail(Callback):
    """Fails once, at a batch."""

    armed = False

    def __init__(self, batch):
        self.batch = batch

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.batch -= 1
        if self.batch == 0 and Fail.armed:
            Fail.armed = False
            raise RuntimeError("as wanted")


class TrainingAlone(LightningModule):
    """Logs its training loss only, and has no validation step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 3)

    def training_step(self, batch, batch_idx):
        loss = nn.functional.cross_entropy(self.layer(batch[0]), batch[1])
        self.log("train_loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Given(LightningModule):
    """Takes optimizer, loss and scheduler, as functions or as dicts, and a network that its YAML file builds."""

    def __init__(self, net, optimizer, loss, scheduler=None):
        super().__init__()
        self.save_hyperparameters(ignore=["net"], logger=False)  # a function, which a checkpoint cannot hold
        self.net, self.optimizer, self.loss, self.scheduler = net, optimizer, loss, scheduler

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class TwoOptimizers(TrainingAlone):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.SGD(self.parameters(), lr=0.1)]


class Unsaveable(TrainingAlone):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["made_by"] = lambda: None


class Unreadable(TrainingAlone):
    def on_save_checkpoint(self, checkpoint):
        checkpoint["made_by"] = random.Random()


class AtTheEnd(TrainingAlone):
    def on_train_end(self):
        self.trainer.callback_metrics["late"] = torch.tensor(1.0)


class Clouds(LightningDataModule):
    """Three clouds of points, shuffled, split at random, with new noise each time that they are read."""

    def __init__(self, rows=60, batch_size=8, workers=0, validate=True):
        super().__init__()
        self.rows, self.batch_size, self.workers = rows, batch_size, workers
        if not validate:
            self.val_dataloader = super().val_dataloader

    def setup(self, stage):
        y = torch.arange(self.rows) % 3
        centres = torch.tensor([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
        points = TensorDataset(centres[y] + 0.3 * torch.randn(self.rows, 2), y)
        self.train, self.val = torch.utils.data.random_split(points, [0.7, 0.3])

    def moved(self, rows):
        x, y = (torch.stack(column) for column in zip(*rows, strict=True))
        return x + 0.01 * torch.randn_like(x) + 0.01 * random.random() + 0.01 * np.random.rand(), y

    def train_dataloader(self):
        more = {"multiprocessing_context": "fork"} if self.workers else {}
        return DataLoader(
            self.train, self.batch_size, shuffle=True, num_workers=self.workers, collate_fn=self.moved, **more
        )

    def val_dataloader(self):
        return DataLoader(self.val, self.batch_size)

    def test_dataloader(self):
        return DataLoader(self.val, self.batch_size)


class WithoutValidation(LightningDataModule):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.randn(24, 2), torch.arange(24) % 3), 8, shuffle=True)


class Empty(WithoutValidation):
    def train_dataloader(self):
        return DataLoader(TensorDataset(torch.zeros(0, 2), torch.zeros(0, dtype=torch.long)), 8)
