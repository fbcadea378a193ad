"""PyTorch's optimizers for many models at once.

Those of torch.optim take one learning rate for a tensor (``lr`` may be a tensor, but of one element), so a stack whose
models differ in it cannot be handed to them. The rules below are theirs, with each number a column ``(J, 1, ...)``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

NUMBERS = {  # what may differ from model to model; betas are two
    SGD: ("lr", "momentum", "dampening", "weight_decay"),
    Adam: ("lr", "betas", "eps", "weight_decay"),
    AdamW: ("lr", "betas", "eps", "weight_decay"),
    RMSprop: ("lr", "alpha", "eps", "weight_decay", "momentum"),
}
MODES = ("nesterov", "maximize", "amsgrad", "centered", "decoupled_weight_decay")  # what must agree
STATE: dict[type, dict[str, str | None]] = {  # tensors that belong to a parameter, and what switches them on
    SGD: {"momentum_buffer": "momentum"},
    Adam: {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
    AdamW: {"exp_avg": None, "exp_avg_sq": None, "max_exp_avg_sq": "amsgrad"},
    RMSprop: {"square_avg": None, "momentum_buffer": "momentum", "grad_avg": "centered"},
}


class StackedOptimizer(Optimizer):
    """One optimizer of J models, as J optimizers of torch.optim would be.

    Numbers such as ``1 - beta^t`` are computed in float64 and then rounded to the dtype of the parameters, and products
    are grouped, as torch.optim does: the same gradients give the same bits on the CPU, or nearly so in float64.

    Args:
        parameters: tensors whose first dimension is J.
        own: an optimizer of torch.optim for each model, of one class and with the same `MODES`. A scheduler may change
            its rate; `read_rates` takes that on.

    Attributes:
        steps: how many were taken.
    """

    def __init__(self, parameters: Iterable[Tensor], own: list[Optimizer]) -> None:
        super().__init__(parameters, {"lr": own[0].param_groups[0]["lr"]})
        self.own = own
        self.kind = type(own[0])
        self.rule: Callable[[Tensor, Tensor, dict[str, Tensor], dict[str, Any]], None] = {
            SGD: self._sgd, Adam: self._adam, AdamW: self._adam, RMSprop: self._rmsprop,
        }[self.kind]  # fmt: skip
        self.mode = own[0].param_groups[0]
        self.steps = 0
        groups = [optimizer.param_groups[0] for optimizer in own]
        self.constants: dict[str, Tensor] = {}
        for name in NUMBERS[self.kind]:
            values = torch.tensor([group[name] for group in groups], dtype=torch.float64)
            self.constants |= {"beta1": values[:, 0], "beta2": values[:, 1]} if name == "betas" else {name: values}

    def read_rates(self) -> None:
        """Take on the rates that schedulers have set."""
        rates = [optimizer.param_groups[0]["lr"] for optimizer in self.own]
        self.constants["lr"] = torch.tensor(rates, dtype=torch.float64)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step of all models; returns what the closure does."""
        with torch.enable_grad():
            loss = closure() if closure else None
        self.steps += 1
        numbers = self._numbers()
        for parameter in self.param_groups[0]["params"]:
            if not self.state[parameter]:
                self.state[parameter] = {name: torch.zeros_like(parameter) for name in STATE[self.kind]}
            shape = (-1, *[1] * (parameter.ndim - 1))
            columns = {name: values.to(parameter).reshape(shape) for name, values in numbers.items()}
            gradient = -parameter.grad if self.mode["maximize"] else parameter.grad
            if not self.mode.get("decoupled_weight_decay") and "weight_decay" in columns:
                gradient = torch.addcmul(gradient, parameter, columns["weight_decay"])
            self.rule(parameter, gradient, columns, self.state[parameter])
        return loss

    def _numbers(self) -> dict[str, Tensor]:
        """Return the numbers of this step, ``(J,)`` each, float64; weight decay only where some model has it."""
        found = dict(self.constants)
        if not found["weight_decay"].any():
            del found["weight_decay"]
        if "beta1" in found:
            roots = (1 - found["beta2"] ** self.steps).sqrt()
            found |= {"rate": found["lr"] / (1 - found["beta1"] ** self.steps), "root": roots}
        for name in ("beta1", "beta2", "alpha", "dampening"):
            if name in found:
                found[f"rest of {name}"] = 1 - found[name]
        if "weight_decay" in found:
            found["kept"] = 1 - found["lr"] * found["weight_decay"]
        return found

    def _sgd(self, parameter: Tensor, gradient: Tensor, n: dict[str, Tensor], state: dict[str, Any]) -> None:
        buffer = state["momentum_buffer"]
        if self.steps == 1:
            buffer.copy_(gradient)
        else:  # of a model without momentum it is the gradient itself
            share = torch.where(n["momentum"] == 0, 1.0, n["rest of dampening"])
            buffer.mul_(n["momentum"]).addcmul_(gradient, share)
        direction = torch.addcmul(gradient, buffer, n["momentum"]) if self.mode["nesterov"] else buffer
        parameter.addcmul_(direction, -n["lr"])

    def _adam(self, parameter: Tensor, gradient: Tensor, n: dict[str, Tensor], state: dict[str, Any]) -> None:
        if self.mode["decoupled_weight_decay"] and "kept" in n:
            parameter.mul_(n["kept"])
        mean, square = state["exp_avg"], state["exp_avg_sq"]
        mean.lerp_(gradient, n["rest of beta1"].expand_as(gradient))
        square.mul_(n["beta2"]).addcmul_(n["rest of beta2"] * gradient, gradient)
        if self.mode["amsgrad"]:
            square = torch.maximum(state["max_exp_avg_sq"], square, out=state["max_exp_avg_sq"])
        parameter.add_(-n["rate"] * mean / (square.sqrt() / n["root"] + n["eps"]))

    def _rmsprop(self, parameter: Tensor, gradient: Tensor, n: dict[str, Tensor], state: dict[str, Any]) -> None:
        square, mean, buffer = state["square_avg"], state["grad_avg"], state["momentum_buffer"]
        square.mul_(n["alpha"]).addcmul_(n["rest of alpha"] * gradient, gradient)
        variance = square
        if self.mode["centered"]:
            mean.lerp_(gradient, n["rest of alpha"].expand_as(gradient))
            variance = torch.addcmul(square, -mean, mean)
        root = variance.sqrt() + n["eps"]
        buffer.mul_(n["momentum"]).add_(gradient / root)
        plain = parameter - n["lr"] * gradient / root
        parameter.copy_(torch.where(n["momentum"] == 0, plain, torch.addcmul(parameter, buffer, -n["lr"])))

    def tensors(self) -> list[dict[str, Tensor]]:
        """Return what is kept of each parameter; nothing before the first step."""
        return [dict(self.state[parameter]) for parameter in self.param_groups[0]["params"]]

    def state_dict(self) -> dict[str, Any]:
        """Return the tensors, and the rates of the models."""
        tensors = self.tensors()
        return {"tensors": tensors, "steps": self.steps, "lr": [own.param_groups[0]["lr"] for own in self.own]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take them up again."""
        self.steps = state_dict["steps"]
        for parameter, tensors in zip(self.param_groups[0]["params"], state_dict["tensors"], strict=True):
            self.state[parameter] = {name: values.to(parameter) for name, values in tensors.items()}
        for own, lr in zip(self.own, state_dict["lr"], strict=True):
            own.param_groups[0]["lr"] = lr
        self.read_rates()


def own_state(own: Optimizer, steps: int, tensors: list[dict[str, Tensor]]) -> dict[str, Any]:
    """Return what torch.optim would have as the state dict of one model's optimizer.

    Args:
        own: the model's.
        steps: how many it has taken.
        tensors: what `StackedOptimizer.tensors` has of this model.
    """
    group, state = own.param_groups[0], {}
    for number, kept in enumerate(tensors if steps else ()):
        own_kept: dict[str, Any] = {} if type(own) is SGD else {"step": torch.tensor(float(steps))}
        for name, switch in STATE[type(own)].items():
            if switch is None or group[switch]:
                own_kept[name] = kept[name]
        if own_kept:
            state[number] = own_kept
    return {"state": state, "param_groups": own.state_dict()["param_groups"]}
