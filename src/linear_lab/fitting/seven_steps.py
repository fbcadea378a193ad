"""The seven steps of backpropagation, with the numbers of a run."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from linear_lab.models import SupervisedModule
from linear_lab.terminal.layout import NARROW, SHOWN, number
from linear_lab.terminal.report import describe, formula, numbers

SYMBOLS = {"weight": "W", "bias": "b"}
LOSS_FORMULAS = {
    "MSELoss": ["loss = mean of (y_hat - y)^2"],
    "L1Loss": ["loss = mean of |y_hat - y|"],
    "CrossEntropyLoss": ["loss = mean of -log p[y], p = softmax(y_hat)"],
    "HuberLoss": ["loss = mean of e^2 / 2 where |e| < delta,", "       else delta (|e| - delta / 2), e = y_hat - y"],
}
RULES = {  # how an optimizer computes the change of the weights, unless one of `VARIANTS` is set
    "SGD": "change = -lr * v, v = momentum * previous v + gradient",
    "Adam": "change = -lr * mean(gradient) / sqrt(mean(gradient^2)),\n         with bias-corrected running means",
    "RMSprop": "change = -lr * gradient / sqrt(mean(gradient^2)),\n         with a running mean",
}
VARIANTS = ("nesterov", "dampening", "maximize", "amsgrad", "centered")


class SevenSteps(Callback):
    """Shows the first training steps of a run as the seven steps of backpropagation.

    Hooks record the numbers of the run itself; nothing is computed again. Steps 1 to 3 do not change and are shown
    once, steps 4 to 7 for each of the first ``steps`` training steps. The first one is recorded in any case.
    """

    def __init__(self, console: Console, steps: int, config: dict[str, Any]) -> None:
        self.console, self.steps, self.config = console, steps, config
        self.recorded: dict[str, Any] | None = None
        self.introduced = False  # whether steps 1 to 3 have been shown

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        # only a linear network has no layers in between
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
            self.y_hats.append(
                self.y_hat
            )  # other callbacks may run the network too; only this output has a backward pass

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if not self.following:
            return
        parameters = pl_module.network.named_parameters()  # type: ignore[union-attr]
        self.gradients.append({name: p.grad.clone() for name, p in parameters if p.grad is not None})
        group, clipped = optimizer.param_groups[0], trainer.gradient_clip_val is not None
        plain = type(optimizer) is SGD and not group["momentum"] and not group["weight_decay"] and not group["maximize"]
        self.lr = group["lr"] if plain and not clipped else None  # None: the change is not simply -lr * gradient
        self.rule = [] if self.lr is not None else rule(optimizer, clipped=clipped)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.following:
            return
        self.hook.remove()
        if not self.gradients:  # gradients are accumulated over several batches, and this was not the last one
            return
        loss = outputs["loss"] * trainer.accumulate_grad_batches  # Lightning divided the loss by this number
        if len(self.y_hats) > 1:  # LBFGS evaluates the loss several times and returns the last one
            loss = pl_module.loss(self.y_hats[0], batch[1])  # type: ignore[operator]
        loss = trainer.strategy.reduce(loss, reduce_op="mean")  # the mean over the processes of DDP
        if self.recorded is None and trainer.global_step == 1:
            gradient = {name: values.tolist() for name, values in self.gradients[0].items()}
            self.recorded = {"loss": loss.item(), "gradient": gradient}
        if trainer.is_global_zero and trainer.global_step <= self.steps:
            batches = batch_idx % trainer.accumulate_grad_batches + 1
            self._show(trainer, batch, batches, loss.item(), self._parameters(pl_module))

    def _show(self, trainer: Trainer, batch: Any, batches: int, loss: float, after: dict[str, Tensor]) -> None:
        x, y, y_hat, gradients = batch[0], batch[1], self.y_hats[0], self.gradients[0]
        share = f", one of {trainer.world_size} shares of the rows" if trainer.world_size > 1 else ""
        if batches > 1:
            share += f", the last of {batches} batches; the gradient is the mean over the rows of all"
        share += f", the first of {len(self.y_hats)} evaluations in this step" if len(self.y_hats) > 1 else ""
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
        updates = [*self.rule]
        for name, old in self.before.items():
            symbol, change = SYMBOLS[name], f"+ {numbers(after[name] - old)}".replace("+ -", "- ")
            if self.lr is not None:
                change = f"- {number(self.lr)} * ({numbers(gradients[name])})"
            updates.append(f"{symbol} <- {symbol} {'+ change' if self.lr is None else f'- lr * dloss/d{symbol}'}")
            updates.append(f"   = {numbers(old)} {change}\n   = {numbers(after[name])}")
        if not self.introduced:
            self.introduced = True
            loss_formula = LOSS_FORMULAS.get(self.config["loss"]["_target_"].rpartition(".")[2], [])
            parameters = [f"{SYMBOLS[name]} = {numbers(old)}" for name, old in self.before.items()]
            self._print("Before training", {
                "1 define the model": [self.formula, *parameters],
                "2 choose the loss": [describe(self.config["loss"]), *loss_formula],
                "3 choose the optimizer": [describe(self.config["optimizer"])],
            })  # fmt: skip
        self._print(f"Training step {trainer.global_step}", {
            "4 forward pass": [f"x {tuple(x.shape)} -> y_hat {tuple(y_hat.shape)}, y {tuple(y.shape)}{share}", rows],
            "5 compute the loss": [f"loss = {number(loss)}"],
            "6 backward pass": [f"dloss/d{SYMBOLS[name]} = {numbers(values)}" for name, values in gradients.items()],
            "7 update the weights": updates,
        })  # fmt: skip

    def _print(self, title: str, steps: dict[str, list[Any]]) -> None:
        table, narrow = Table.grid(padding=(0, 2)), self.console.width < NARROW
        if not narrow:
            table.add_column(min_width=20)  # as wide as the longest name, so that all tables are aligned
        for name, contents in steps.items():
            for position, content in enumerate([name, *contents] if narrow else contents):
                table.add_row(*([] if narrow else ["" if position else name]), content)
        self.console.print(title, style="bold")
        self.console.print(table)
        self.console.print()

    def state_dict(self) -> dict[str, Any]:
        return {"recorded": self.recorded}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.recorded = state_dict["recorded"]

    @staticmethod
    def _parameters(pl_module: LightningModule) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in pl_module.network.named_parameters()}  # type: ignore[union-attr]


def rule(optimizer: Optimizer, *, clipped: bool) -> list[str]:
    """Say how an optimizer computes the change of the weights, for all but plain SGD."""
    group, name = optimizer.param_groups[0], type(optimizer).__name__
    text = "change = -lr * gradient" if name == "SGD" and not group["momentum"] else RULES.get(name.removesuffix("W"))
    if not text or any(group.get(option) for option in VARIANTS) or (name == "RMSprop" and group["momentum"]):
        text = f"change = what {name} computes from the gradients"
    decay = "Weight decay adds weight_decay * weight to the gradient."
    if group.get("decoupled_weight_decay"):
        decay = "Weight decay adds -lr * weight_decay * weight to it."
    return [text, *["The gradient is clipped first."] * clipped, *[decay] * bool(group.get("weight_decay"))]
