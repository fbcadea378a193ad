"""A network, a loss and an optimizer as a LightningModule."""

import copy
import sys
from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau
from torchmetrics import Metric

Spec = dict[str, Any]  # the dotted name of a class under `_target_`, and its arguments

T = TypeVar("T")


class SupervisedModule(LightningModule):
    """``y_hat = network(x)``, fitted by gradient descent; for classification y_hat are the logits of C classes.

    All arguments except network and metrics are plain numbers, strings, lists and dicts. A subclass builds its network
    from such arguments too. The checkpoint then holds all of them, so that ``load_from_checkpoint(path)`` needs no
    other argument and runs no code from the file::

        class MyModule(SupervisedModule):
            def __init__(self, in_features, out_features, width=8, **training):
                hidden, output = nn.Linear(in_features, width), nn.Linear(width, out_features)
                super().__init__(nn.Sequential(hidden, nn.ReLU(), output), **training)

    Args:
        network: maps x ``(B, F)`` to y_hat ``(B, T)``, or to logits ``(B, C)``.
        loss: a loss class of torch.nn, called with ``y_hat`` and ``y``; the mean squared error by default.
        optimizer: an optimizer class; SGD by default.
        scheduler: a learning rate scheduler class, stepped after each epoch; ReduceLROnPlateau after each validation.
        metric: the metric that ReduceLROnPlateau monitors.
        schema: names and units of the columns, which the checkpoint keeps for predictions.
        metrics: metrics of torchmetrics by name, in addition to the loss and the accuracy of classes. ``{"f1":
            F1Score(...)}`` is measured on y_hat and y of each part in training's units, and logged as ``val/f1`` etc.

    Raises:
        ValueError: if a spec names no class of the right kind, or if the loss has another reduction than mean.
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
        metrics: Mapping[str, Metric] | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network", "metrics"], logger=False)
        self.network = network
        self.loss = build_from_spec(loss or {"_target_": "torch.nn.MSELoss"}, nn.Module)
        if (reduction := getattr(self.loss, "reduction", "mean")) != "mean":
            raise ValueError(f"loss.reduction must be mean, so that batches of all sizes compare, got {reduction}")
        self.optimizer_spec = optimizer or {"_target_": "torch.optim.SGD", "lr": 0.01}
        self.scheduler_spec = scheduler
        self.metric = metric
        self.extra_validation = False  # True for a validation that ReduceLROnPlateau must not count
        self.metrics = dict(metrics or {})
        self._part_metrics: dict[str, Metric] = {}  # `metrics` of each part, by the names of their curves
        self._sums: dict[str, float] = defaultdict(float)
        self._rows: dict[str, int] = defaultdict(int)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # without this, a float32 module would round the float64 parameters of a checkpoint
        self.to(next(iter(checkpoint["state_dict"].values())).dtype)

    def forward(self, x: Tensor) -> Tensor:
        y_hat: Tensor = self.network(x)
        return y_hat

    def learned(self) -> dict[str, Any]:
        """Return the parameters of the network as nested lists, by name."""
        return {name: values.tolist() for name, values in self.network.named_parameters()}

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of the batch, averaged over its rows and targets.

        Raises:
            ValueError: if y does not fit y_hat. Cross-entropy needs int64 class indices ``(B,)``, other losses need
                numbers in the shape of y_hat, since PyTorch would broadcast other shapes to a wrong loss.
        """
        if not getattr(self.trainer.datamodule, "by_part", False):  # type: ignore[attr-defined]  # see LinearData
            loss = self._loss(batch)
            self.log("train/loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[0]))
            return loss
        if self.trainer.world_size == 1:
            return self._loss(batch)
        # The strategy averages gradients over processes. The weight makes this average the mean over all rows of the
        # global batch, even if processes have different numbers of rows, or none.
        rows = torch.tensor(float(len(batch[0])), device=self.device)
        share = rows * self.trainer.world_size / self.trainer.strategy.reduce(rows.clone(), reduce_op="sum")
        return self._loss(batch) * share if share else torch.stack([p.sum() for p in self.parameters()]).sum() * share

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(batch, part_of(self.trainer.val_dataloaders, "val", dataloader_idx))

    def on_validation_epoch_end(self) -> None:
        metrics = self._log_metrics()
        self.log("step", float(self.trainer.global_step), sync_dist=True)  # Lightning takes it as the x axis
        if self.trainer.state.fn != "fit" or self.trainer.sanity_checking:
            return
        # Lightning would step ReduceLROnPlateau after saving the checkpoint, so a resumed run would miss a step.
        scheduler = self.lr_schedulers()
        if isinstance(scheduler, ReduceLROnPlateau) and not self.extra_validation:
            scheduler.step(metrics[self.metric])

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        self._measure(batch, part_of(self.trainer.test_dataloaders, "test", dataloader_idx))

    def on_test_epoch_end(self) -> None:
        self._log_metrics()

    def fresh_optimizer(self) -> Optimizer:
        """Build another optimizer in its state before the first step, with the rate that a scheduler sets there."""
        built: Any = self.configure_optimizers()
        optimizer: Optimizer = built["optimizer"] if isinstance(built, dict) else built
        return optimizer

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_from_spec(self.optimizer_spec, Optimizer, self.parameters())
        if not self.scheduler_spec:
            return optimizer
        scheduler = build_from_spec(self.scheduler_spec, LRScheduler, optimizer)
        # on_validation_epoch_end steps ReduceLROnPlateau; with this frequency Lightning never does
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
        shape = y_hat.shape[:1] if classes else y_hat.shape
        if y.shape != shape or y.is_floating_point() == classes:
            kind = "int64 class indices, one per row" if classes else "numbers in the shape"
            raise ValueError(f"y must hold {kind} of y_hat {tuple(y_hat.shape)}, got {tuple(y.shape)} {y.dtype}")
        loss: Tensor = self.loss(y_hat, y)
        return loss

    def _measure(self, batch: tuple[Tensor, Tensor], part: str) -> None:
        """Sum the metrics of a part in float64, so that the size of its batches does not matter."""
        x, y = batch
        y_hat = self(x)
        self._sums[f"{part}/loss"] += self._loss_of(y_hat, y).item() * len(x)
        if not y.is_floating_point():
            self._sums[f"{part}/accuracy"] += (y_hat.argmax(1) == y).sum().item()
        self._rows[part] += len(x)
        for name, metric in self.metrics.items():
            self._part_metrics.setdefault(f"{part}/{name}", copy.deepcopy(metric).to(self.device)).update(y_hat, y)

    def _log_metrics(self) -> dict[str, float]:
        metrics = {name: total / self._rows[name.partition("/")[0]] for name, total in self._sums.items()}
        metrics |= {name: float(metric.compute()) for name, metric in self._part_metrics.items()}
        self._sums.clear()
        self._rows.clear()
        self._part_metrics.clear()
        for name, value in metrics.items():
            # log() rounds Python numbers to float32, so this is a tensor of the module's dtype
            tensor = torch.tensor(value, dtype=next(self.parameters()).dtype, device=self.device)
            self.log(name, tensor, sync_dist=True)
        return metrics


def part_of(loaders: Any, default: str, index: int) -> str:
    """Return the name of a loader's part: its key in a dict, else the default, numbered from the second loader on.

    >>> part_of({"train": [], "val": []}, "val", 1), part_of([], "val", 0), part_of([[], []], "test", 1)
    ('val', 'val', 'test_1')
    """
    if isinstance(loaders, dict):
        return str(list(loaders)[index])
    return f"{default}_{index}" if index else default


def build_from_spec(spec: Spec, kind: type[T], *args: Any) -> T:
    """Build ``spec["_target_"]`` with the positional arguments and those of the spec.

    The target must be a subclass of ``kind`` in a module that is already imported, else ValueError is raised. A
    checkpoint that names the target can therefore neither call a function nor import a file.

    >>> build_from_spec({"_target_": "torch.nn.HuberLoss", "delta": 0.5}, nn.Module)
    HuberLoss()
    """
    target = str(spec.get("_target_"))
    module, _, name = target.rpartition(".")
    cls = getattr(sys.modules.get(module), name, None)
    if not (isinstance(cls, type) and issubclass(cls, kind)):
        raise ValueError(f"{target} is not a subclass of {kind.__name__} in a module that is imported")
    return cls(*args, **{key: value for key, value in spec.items() if key not in ("_target_", "_partial_")})
