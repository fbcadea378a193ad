"""Steps whose gradient comes from several batches."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from linear_lab.data import LinearData


class MeanOverRows(Callback):
    """Makes the gradient of a step the mean over the rows of all its batches, of `LinearData`.

    Lightning divides the loss of each batch by ``accumulate_grad_batches``: also where an epoch ends with fewer
    batches, and whatever the number of rows in each. A checkpoint that is taken within a step holds its gradient.
    """

    def __init__(self) -> None:
        self.rows, self.last = 0.0, 1.0  # rows of the step's batches so far, and of the last one
        self.after = 1.0  # factor of the gradient, after the backward pass of a batch
        self.gradient: dict[str, torch.Tensor] = {}  # of a checkpoint that was taken within a step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        for name, parameter in pl_module.named_parameters():
            if name in self.gradient:
                parameter.grad = self.gradient[name].to(parameter)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        together, taken = trainer.accumulate_grad_batches, batch_idx + 1
        if together == 1 or not isinstance(trainer.datamodule, LinearData):  # type: ignore[attr-defined]
            return
        own = torch.tensor(float(len(batch[0])), device=pl_module.device)
        rows = float(trainer.strategy.reduce(own, reduce_op="sum"))
        if self.rows:
            scale_gradient(pl_module, self.last / rows)  # the gradient so far, in units of this batch's rows
        self.last, self.rows, self.after = rows, self.rows + rows, 1.0
        if not taken % together or taken == trainer.num_training_batches or trainer.is_last_batch:
            self.after, self.rows = together * rows / self.rows, 0.0

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scale_gradient(pl_module, self.after)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        if self.rows:
            gradients = {name: p.grad.clone() for name, p in pl_module.named_parameters() if p.grad is not None}
            mean = {name: trainer.strategy.reduce(values, reduce_op="mean") for name, values in gradients.items()}
            checkpoint["part_of_step"] = {"rows": self.rows, "last": self.last, "gradient": mean}

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        vars(self).update(checkpoint.get("part_of_step", {}))


def scale_gradient(module: LightningModule, factor: float) -> None:
    """Multiply the gradient by a factor, unless it is 1, as in most steps."""
    if factor != 1:
        for parameter in module.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(factor)
