"""The seven steps of backpropagation, as a run takes them."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from linear_lab.models import SupervisedModule
from linear_lab.terminal.layout import SHOWN, number
from linear_lab.terminal.report import describe, formula, numbers

SYMBOLS = {"weight": "W", "bias": "b"}
LOSS_FORMULAS = {
    "MSELoss": ["mean of (y_hat - y)^2"],
    "L1Loss": ["mean of |y_hat - y|"],
    "CrossEntropyLoss": ["mean of -log p[y], p = softmax(y_hat)"],
    "HuberLoss": ["mean of e^2 / 2 where |e| < delta, else delta (|e| - delta / 2), e = y_hat - y"],
}


class SevenSteps(Callback):
    """Shows the first steps of a run as the seven steps of backpropagation, by hooks: nothing is computed again.

    ``steps`` says how many to show; the first one is followed in any case, for the record.
    """

    def __init__(self, console: Console, steps: int, config: dict[str, Any]) -> None:
        self.console, self.steps, self.config = console, steps, config
        self.recorded: dict[str, Any] | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # another network has other steps in between
        linear = isinstance(pl_module, SupervisedModule) and isinstance(pl_module.network, nn.Linear)
        self.following = trainer.global_step < max(self.steps, 1) and linear
        if self.following:
            self.formula = formula(pl_module)
            self.before = self._parameters(pl_module)
            self.y_hats: list[Tensor] = []
            self.gradients: list[dict[str, Tensor]] = []
            self.hook = pl_module.network.register_forward_hook(self._keep)  # type: ignore[union-attr]

    def _keep(self, network: nn.Module, inputs: Any, y_hat: Tensor) -> None:
        self.y_hat = y_hat.detach()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self.following:
            self.y_hats.append(self.y_hat)  # others may run the network too: what a backward pass follows is the step's

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.following:
            return
        parameters = pl_module.network.named_parameters()  # type: ignore[union-attr]
        self.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
        group = optimizer.param_groups[0]
        plain = type(optimizer) is SGD and not group["momentum"] and not group["weight_decay"]
        # None where the update is more than lr times the gradient
        self.lr = group["lr"] if plain and trainer.gradient_clip_val is None else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.following:
            return
        self.hook.remove()
        if not self.gradients:  # gradients add up over batches, and the weights stay
            return
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning has divided the loss by that number
        if len(self.y_hats) > 1:  # an optimizer such as LBFGS evaluates several times, and returns the last loss
            loss = pl_module.loss(self.y_hats[0], batch[1])  # type: ignore[operator]
        loss = trainer.strategy.reduce(loss, reduce_op="mean")  # each process has its share of the batch's loss
        if self.recorded is None and trainer.global_step == 1:
            gradient = {name: values.tolist() for name, values in self.gradients[0].items()}
            self.recorded = {"loss": loss.item(), "gradient": gradient}
        if trainer.is_global_zero and trainer.global_step <= self.steps:  # another process may have had no row
            batches = batch_idx % trainer.accumulate_grad_batches + 1
            self._show(trainer, batch[0], batch[1], batches, loss.item(), self._parameters(pl_module))

    def _show(
        self, trainer: Trainer, x: Tensor, y: Tensor, batches: int, loss: float, after: dict[str, Tensor]
    ) -> None:
        y_hat, gradients = self.y_hats[0], self.gradients[0]
        share = f", one of {trainer.world_size} shares of the rows" if trainer.world_size > 1 else ""
        if batches > 1:
            share += f", the last of {batches} batches; the gradient is the mean over the rows of all"
        again = f", the first of {len(self.y_hats)} in this step" if len(self.y_hats) > 1 else ""
        if y.is_floating_point():
            columns = {"x": x, "y_hat": y_hat, "y": y, "y_hat - y": y_hat - y}
        else:
            columns = {"x": x, "y_hat": y_hat, "p": y_hat.softmax(1), "y": y}
        rows = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
        for column in rows.columns:
            column.overflow = "fold"
        for row in range(min(len(x), SHOWN)):
            rows.add_row(*(numbers(values[row]) for values in columns.values()))
        if len(x) > SHOWN:
            rows.add_row(*["..."] * len(columns))
        loss_name = self.config["loss"]["_target_"].rpartition(".")[2]
        updates = []
        for name, old in self.before.items():
            rule, step = "+ step of the optimizer", f"+ ({numbers(after[name] - old)})"
            if self.lr is not None:
                rule = f"- {number(self.lr)} * dloss/d{SYMBOLS[name]}"
                step = f"- {number(self.lr)} * ({numbers(gradients[name])})"
            before_and_after = f"{numbers(old)} {step} = {numbers(after[name])}"
            updates.append(f"{SYMBOLS[name]} <- {SYMBOLS[name]} {rule} = {before_and_after}")
        steps: dict[str, list[Any]] = {
            "model": [self.formula, *(f"{SYMBOLS[name]} = {numbers(old)}" for name, old in self.before.items())],
            "loss": [" = ".join([describe(self.config["loss"]), *LOSS_FORMULAS.get(loss_name, ())])],
            "optimizer": [describe(self.config["optimizer"])],
            "forward": [f"x {tuple(x.shape)} -> y_hat {tuple(y_hat.shape)}, y {tuple(y.shape)}{share}{again}", rows],
            "loss value": [f"loss = {number(loss)}"],
            "backward": [f"dloss/d{SYMBOLS[name]} = {numbers(values)}" for name, values in gradients.items()],
            "update": updates,
        }
        table = Table.grid(padding=(0, 2))
        for count, (name, contents) in enumerate(steps.items(), start=1):
            for position, content in enumerate(contents):
                table.add_row("" if position else f"{count} {name}", content)
        self.console.print(f"Step {trainer.global_step}", style="bold")
        self.console.print(table)
        self.console.print()

    def state_dict(self) -> dict[str, Any]:
        return {"recorded": self.recorded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recorded = state_dict["recorded"]

    @staticmethod
    def _parameters(pl_module: LightningModule) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}  # type: ignore[union-attr]
