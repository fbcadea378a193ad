"""A network, a loss and an optimizer as a LightningModule."""

import math
import sys
from collections import defaultdict
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

Spec = dict[str, Any]  # a class by its dotted name under `_target_`, and its arguments: plain, so a checkpoint holds it

T = TypeVar("T")


class SupervisedModule(LightningModule):
    """``y_hat = network(x)``, fitted by gradient descent; for classification y_hat are the logits of C classes.

    All arguments but the network are plain numbers, strings, lists and dicts. A subclass builds its network from such
    arguments too, so that the checkpoint holds them all, and ``load_from_checkpoint(path)`` needs no argument and runs
    no code from the file::

        class MyModule(SupervisedModule):
            def __init__(self, in_features, out_features, width=8, **training):
                hidden, output = nn.Linear(in_features, width), nn.Linear(width, out_features)
                super().__init__(nn.Sequential(hidden, nn.ReLU(), output), **training)

    Args:
        network: maps x ``(B, F)`` to y_hat ``(B, T)``, or to logits ``(B, C)``.
        loss: a loss class of torch.nn, called with ``y_hat`` and ``y``; the mean squared error by default.
        optimizer: an optimizer class; SGD by default.
        scheduler: a learning rate scheduler class, stepped once an epoch; ReduceLROnPlateau once a validation.
        metric: what ReduceLROnPlateau watches.
        schema: names and units of the columns, which the checkpoint keeps for whoever predicts with it.

    Raises:
        ValueError: naming the argument: an lr that is not positive, a target that is not a class of its kind.
    """

    def __init__(
        self,
        network: nn.Module,
        *,
        loss: Spec | None = None,
        optimizer: Spec | None = None,
        scheduler: Spec | None = None,
        metric: str = "val/loss",
        schema: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"], logger=False)
        self.network = network
        self.loss = build(loss or {"_target_": "torch.nn.MSELoss"}, nn.Module)
        if (reduction := getattr(self.loss, "reduction", "mean")) != "mean":
            raise ValueError(f"loss.reduction must be mean, so that batches of any size compare, got {reduction}")
        self.optimizer_spec = optimizer or {"_target_": "torch.optim.SGD", "lr": 0.01}
        self.scheduler_spec = scheduler
        self.metric = metric
        self._sums: dict[str, float] = defaultdict(float)
        self._rows: dict[str, int] = defaultdict(int)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set Lightning's note of the hook it calls, twice a hook, without looking for parameters and modules in it."""
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take on the precision of the checkpoint: float64 would be cut to float32."""
        self.to(next(iter(checkpoint["state_dict"].values())).dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``(B, F)`` to y_hat ``(B, T)``."""
        y_hat: Tensor = self.network(x)
        return y_hat

    def learned(self) -> dict[str, Any]:
        """Return the parameters as nested lists, by their names in the network."""
        return {name: values.tolist() for name, values in self.network.named_parameters()}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Loss of the batch, averaged over its rows and targets.

        Raises:
            ValueError: if y does not fit y_hat: for cross-entropy int64 class indices ``(B,)``, else numbers of y_hat's
                shape, which the loss would otherwise broadcast into a wrong number.
        """
        if self.trainer.world_size == 1:
            return self._loss(batch)
        # The strategy averages gradients over processes. Weighted by its rows, the mean of this process becomes its
        # share of the mean over the global batch, also where the shares differ by a row, or one has none.
        rows = torch.tensor(float(len(batch[0])), device=self.device)
        share = rows * self.trainer.world_size / self.trainer.strategy.reduce(rows.clone(), reduce_op="sum")
        return self._loss(batch) * share if share else torch.stack([p.sum() for p in self.parameters()]).sum() * share

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch of a part."""
        self._measure(batch, list(self.trainer.val_dataloaders or ())[dataloader_idx])

    def on_validation_epoch_end(self) -> None:
        """Log the parts' metrics; then let ReduceLROnPlateau see them, before a checkpoint is written.

        Lightning would step it after the checkpoint, and a run resumed from there would miss that step.
        """
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        metrics = self._log_metrics(directly=fitting and self.trainer.world_size == 1)
        if fitting:
            for config in self.trainer.lr_scheduler_configs:
                if isinstance(config.scheduler, ReduceLROnPlateau):
                    config.scheduler.step(metrics[self.metric])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Measure a batch of a part."""
        self._measure(batch, list(self.trainer.test_dataloaders or ())[dataloader_idx])

    def on_test_epoch_end(self) -> None:
        """Log the parts' metrics."""
        self._log_metrics()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Build the optimizer, and the scheduler if there is one.

        Raises:
            ValueError: for an lr that is not a positive number, and what the classes themselves refuse.
        """
        lr = self.optimizer_spec.get("lr", 1.0)
        if not isinstance(lr, (int, float)) or isinstance(lr, bool) or not 0 < lr < math.inf:
            raise ValueError(f"lr must be a positive number, got {lr}; try optimizer.lr=0.01")
        optimizer = build(self.optimizer_spec, Optimizer, self.parameters())
        if not self.scheduler_spec:
            return optimizer
        scheduler = build(self.scheduler_spec, LRScheduler, optimizer)
        # ReduceLROnPlateau is never stepped by Lightning: on_validation_epoch_end does it
        frequency = sys.maxsize if isinstance(scheduler, ReduceLROnPlateau) else 1
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "monitor": self.metric, "frequency": frequency},
        }

    def _loss(self, batch: tuple[Tensor, Tensor]) -> Tensor:
        x, y = batch
        return self._loss_of(self(x), y)

    def _loss_of(self, y_hat: Tensor, y: Tensor) -> Tensor:
        classes = isinstance(self.loss, nn.CrossEntropyLoss)
        wanted = y_hat.shape[:1] if classes else y_hat.shape
        if y.shape != wanted or y.is_floating_point() == classes:
            kind = "int64 class indices, one a row" if classes else "numbers in the shape"
            raise ValueError(f"y must hold {kind} of y_hat {tuple(y_hat.shape)}, got {tuple(y.shape)} {y.dtype}")
        loss: Tensor = self.loss(y_hat, y)
        return loss

    def _measure(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        """Add up the metrics of a part in Python's float64, so that cutting it into batches costs no digits."""
        x, y = batch
        y_hat = self(x)
        self._sums[f"{part}/loss"] += self._loss_of(y_hat, y).item() * len(x)
        if not y.is_floating_point():
            self._sums[f"{part}/accuracy"] += (y_hat.argmax(1) == y).sum().item()
        self._rows[part] += len(x)

    def _log_metrics(self, *, directly: bool = False) -> dict[str, float]:
        """Log the metrics; directly where no other process has some: Lightning's log() takes 0.4 ms for each."""
        trainer = self.trainer
        metrics = {name: total / self._rows[name.partition("/")[0]] for name, total in self._sums.items()}
        self._sums.clear()
        self._rows.clear()
        # as tensors of the module's own dtype: log() would round a Python number to float32
        dtype = next(self.parameters()).dtype
        values = {name: torch.tensor(metric, dtype=dtype, device=self.device) for name, metric in metrics.items()}
        if directly:
            trainer.callback_metrics.update(values)
            trainer.logged_metrics.update(values)
            for logger in trainer.loggers:
                logger.log_metrics({name: value.item() for name, value in values.items()}, trainer.global_step)
            if trainer._results:  # a module of one's own has logged something
                self.log("step", float(trainer.global_step))  # the loggers' x axis: else it lags by one
            return metrics
        for name, value in values.items():
            self.log(name, value, sync_dist=True)
        if trainer.state.fn != TrainerFn.TESTING:
            self.log("step", float(trainer.global_step), sync_dist=True)  # the loggers' x axis: else it lags by one
        return metrics


def build(spec: Spec, kind: type[T], *args: Any) -> T:
    """Build ``spec["_target_"]`` with the positional and the spec's arguments.

    Only subclasses of ``kind`` in modules that are imported already: a checkpoint may name what to build,
    but neither call a function nor import a file.

    Raises:
        ValueError: if the target is not such a class.

    >>> build({"_target_": "torch.nn.HuberLoss", "delta": 0.5}, nn.Module)
    HuberLoss()
    """
    target = str(spec.get("_target_"))
    module, _, name = target.rpartition(".")
    found = getattr(sys.modules.get(module), name, None)
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"{target} is not a subclass of {kind.__name__} in a module that is imported")
    return found(*args, **{key: value for key, value in spec.items() if key != "_target_"})
