"""J models as one: the LightningModule of a stack, and its data."""

import sys
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from linear_lab.data import LinearData
from linear_lab.data.batches import Batches, Part
from linear_lab.stacked.losses import Loss
from linear_lab.stacked.optimizers import StackedOptimizer

AT_ONCE = 1 << 24  # predictions that are held at once while measuring: bounds memory, not results


class StackedModule(LightningModule):
    """``y_hat[j] = W[j] x^T + b[j]`` for J models, ``(J, T, B)``; each has a loss, and learns from its own alone.

    What is propagated back is the sum of their losses: its gradient by a model's parameters is that of the model's own.

    Args:
        weight: ``(J, T, F)``, where the models start.
        bias: ``(J, T)``; None for models without.
        loss: of y_hat and y, ``(J,)``; see `losses`.
        own: each model's optimizer, as torch.optim builds it.
        schedulers: of the models' own optimizers, each once; stepped as `LinearModule` steps one.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        loss: Loss,
        own: list[Any],
        schedulers: Sequence[LRScheduler],
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)
        self.bias = None if bias is None else nn.Parameter(bias)
        self.loss = loss
        self.optimizer = StackedOptimizer(self.parameters(), own)
        self.schedulers = schedulers
        self.losses = torch.zeros(0)  # of the last step, as it began

    def forward(self, x: Tensor) -> Tensor:
        """Map x ``(B, F)``, or ``(J, B, F)`` where each model has rows of its own, to y_hat ``(J, T, B)``."""
        jobs, targets, features = self.weight.shape
        if x.ndim == 2:
            y_hat = (self.weight.reshape(-1, features) @ x.T).reshape(jobs, targets, len(x))
        else:
            y_hat = self.weight @ x.mT
        return y_hat if self.bias is None else y_hat + self.bias[..., None]

    def training_step(self, batch: Part, batch_idx: int) -> Tensor:
        """Return the sum of the models' losses."""
        losses = self._losses(*batch)
        self.losses = losses.detach()
        return losses.sum()

    def validation_step(self, *_: Any) -> None:
        """Leave it to the callbacks, which want the models' own numbers."""

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, and what steps the schedulers."""
        if not self.schedulers:
            return self.optimizer
        together = Together(self.optimizer, self.schedulers)
        # ReduceLROnPlateau wants each model's own metric: whoever measures it steps them
        frequency = sys.maxsize if isinstance(self.schedulers[0], ReduceLROnPlateau) else 1
        return {"optimizer": self.optimizer, "lr_scheduler": {"scheduler": together, "frequency": frequency}}

    @torch.no_grad()
    def measure(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Return the metrics of a part, ``(J,)`` each, float64, on the CPU."""
        total: dict[str, Tensor] = {}
        for inputs, targets in self._pieces(x, y):
            y_hat = self(inputs)
            found = {"loss": self.loss(y_hat, laid_out(targets)).double() * len(inputs)}
            if not y.is_floating_point():
                found["accuracy"] = (y_hat.argmax(1) == targets).sum(1).double()
            total = {name: total[name] + values if total else values for name, values in found.items()}
        return {name: (values / len(x)).cpu() for name, values in total.items()}

    def gradient_norms(self, x: Tensor, y: Tensor) -> Tensor:
        """Return the norm of the gradient of each model's loss over a part, ``(J,)``, float64, on the CPU."""
        parameters = list(self.parameters())
        with torch.inference_mode(False), torch.enable_grad():  # Lightning validates without gradients
            total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
            for inputs, targets in self._pieces(x, y):
                gradients = torch.autograd.grad(self._losses(inputs, targets).sum(), parameters)
                for values, gradient in zip(total, gradients, strict=True):
                    values.add_(gradient, alpha=len(inputs) / len(x))
        squares = [values.detach().square().flatten(1).sum(1) for values in total]
        return torch.stack(squares).sum(0).sqrt().cpu()

    def _losses(self, x: Tensor, y: Tensor) -> Tensor:
        return self.loss(self(x), laid_out(y))

    def _pieces(self, x: Tensor, y: Tensor) -> list[Part]:
        rows = max(AT_ONCE // self.weight[..., 0].numel(), 1)
        return [
            (
                inputs.to(self.weight),
                targets.to(self.device, self.weight.dtype if targets.is_floating_point() else None),
            )
            for inputs, targets in zip(torch.split(x, rows), torch.split(y, rows), strict=True)
        ]


def laid_out(y: Tensor) -> Tensor:
    """Turn y ``(..., B, T)`` into ``(..., T, B)``, as y_hat is; class indices stay."""
    return y.mT if y.is_floating_point() else y


class Together(LRScheduler):
    """Steps the schedulers of all models, once an epoch."""

    def __init__(self, optimizer: StackedOptimizer, schedulers: Sequence[LRScheduler]) -> None:
        self.optimizer: StackedOptimizer = optimizer
        self.schedulers = schedulers

    def step(self, *_: Any) -> None:
        """Step, and have the optimizer know the rates."""
        for scheduler in self.schedulers:
            scheduler.step()
        self.optimizer.read_rates()

    def state_dict(self) -> dict[str, Any]:
        """Return the states of all."""
        return {"schedulers": [scheduler.state_dict() for scheduler in self.schedulers]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
            scheduler.load_state_dict(state)


class StackedData(LightningDataModule):
    """Serves each model the rows in its own order.

    Args:
        data: what all models are trained on.
        order_seeds: of each model.
    """

    def __init__(self, data: LinearData, order_seeds: Sequence[int]) -> None:
        super().__init__()
        self.data, self.order_seeds = data, order_seeds

    def train_dataloader(self) -> "StackedBatches | Batches":
        """Return batches ``(B, F)`` that all models share, or ``(J, B, F)`` where their orders differ."""
        self.data.trainer = self.trainer
        distinct = list(dict.fromkeys(self.order_seeds)) if self.data.batch_size is not None else self.order_seeds[:1]
        orders = []
        for seed in distinct:
            self.data.order_seed = seed
            orders.append(self.data.train_dataloader())
        if len(orders) == 1:
            return orders[0]
        return StackedBatches(orders, torch.tensor([distinct.index(seed) for seed in self.order_seeds]))

    def val_dataloader(self) -> Any:
        """Return what single training measures."""
        self.data.trainer = self.trainer
        return self.data.val_dataloader()


class StackedBatches:
    """Batches of the same data in several orders, side by side.

    Args:
        orders: one for each distinct order.
        of_model: which of them each model sees, ``(J,)``.
    """

    def __init__(self, orders: Sequence[Batches], of_model: Tensor) -> None:
        self.orders, self.of_model = orders, of_model

    def __len__(self) -> int:
        """Batches an epoch."""
        return len(self.orders[0])

    def __iter__(self) -> Any:
        """Yield x ``(J, B, F)`` and y ``(J, B, T)`` or ``(J, B)``."""
        for batches in zip(*self.orders, strict=True):
            x, y = (torch.stack(values) for values in zip(*batches, strict=True))
            of_model = self.of_model.to(x.device)
            yield x[of_model], y[of_model]

    def state_dict(self) -> dict[str, int]:
        """How far the epoch has come, which is the same in all orders."""
        return self.orders[0].state_dict()

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on after the batches that were taken before the checkpoint."""
        for order in self.orders:
            order.load_state_dict(state)
