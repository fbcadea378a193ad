"""Gradient accumulation: steps whose gradient comes from several batches."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from linear_lab.data import LinearData


class MeanOverRows(Callback):
    """Makes the gradient of a step the mean over the rows of all its batches, if the data are `LinearData`.

    Lightning divides the loss of each batch by ``accumulate_grad_batches``, even if the epoch ends with fewer batches,
    and whatever the number of rows in each batch. A checkpoint that is saved within a step holds the gradient so far.
    """

    def __init__(self) -> None:
        self.rows, self.last = 0.0, 1.0  # rows of all batches of the step so far, and of the last batch
        self.factor = 1.0  # multiplies the gradient after the backward pass of a batch
        self.gradient: dict[str, torch.Tensor] = {}  # from a checkpoint that was saved within a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.gradient:
                parameter.grad = self.gradient[name].to(parameter)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        batches_per_step, taken = trainer.accumulate_grad_batches, batch_idx + 1
        if batches_per_step == 1 or not isinstance(trainer.datamodule, LinearData):  # type: ignore[attr-defined]
            return
        rows_here = torch.tensor(float(len(batch[0])), device=pl_module.device)
        rows = float(trainer.strategy.reduce(rows_here, reduce_op="sum"))
        if self.rows:
            scale_gradient(pl_module, self.last / rows)  # the gradient so far, in units of this batch's rows
        self.last, self.rows, self.factor = rows, self.rows + rows, 1.0
        if not taken % batches_per_step or taken == trainer.num_training_batches or trainer.is_last_batch:
            self.factor, self.rows = batches_per_step * rows / self.rows, 0.0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scale_gradient(pl_module, self.factor)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.rows:
            gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            mean = {name: trainer.strategy.reduce(values, reduce_op="mean") for name, values in gradients.items()}
            checkpoint["part_of_step"] = {"rows": self.rows, "last": self.last, "gradient": mean}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        vars(self).update(checkpoint.get("part_of_step", {}))


def scale_gradient(module: LightningModule, factor: float) -> None:
    """Multiply the gradient by a factor, which is 1 in most steps."""
    if factor != 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
