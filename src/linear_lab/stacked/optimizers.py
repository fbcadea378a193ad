"""PyTorch's optimizers as functions of one model, whose numbers are tensors that can differ between models under vmap.

The classes of torch.optim take one learning rate for all models. The functions here evaluate products in the same order
as torch.optim, so that in float32 the same gradients give the same bits, or nearly so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from linear_lab.fitting.checks import NUMBERS

Numbers = dict[str, Tensor]  # 0-dimensional, float64
State = dict[str, Tensor]  # the buffers of one parameter, which have its shape
# buffers that exist only if this mode is set, or this number is not 0
REQUIRES = {"max_exp_avg_sq": "amsgrad", "grad_avg": "centered", "momentum_buffer": "momentum"}


class Rule(NamedTuple):
    """The update rule of an optimizer.

    ``derive`` computes, in float64, what ``update`` needs from the numbers and the step t, from 1 on. ``update`` takes
    a parameter, its gradient and state, the derived numbers in its dtype, and the modes; it returns new ones.
    """

    numbers: tuple[str, ...]  # names of the numbers that may differ between models
    derive: Callable[[Numbers, Tensor], Numbers]
    update: Callable[[Tensor, Tensor, State, Numbers, dict[str, Any]], tuple[Tensor, State]]
    buffers: tuple[str, ...]  # names of the buffers, as in torch.optim

    def state(self, modes: dict[str, Any], numbers: Numbers) -> list[str]:
        """Return the names of the buffers that these modes and numbers require; see `REQUIRES`."""
        required = {mode for mode, on in modes.items() if on} | numbers.keys()
        return [name for name in self.buffers if name not in REQUIRES or REQUIRES[name] in required]


def sgd_numbers(n: Numbers, t: Tensor) -> Numbers:
    if "momentum" not in n:
        return n
    dampening = n.get("dampening", torch.zeros_like(n["lr"]))
    # without momentum, the buffer is the gradient itself
    share = torch.where((t == 1) | (n["momentum"] == 0), 1.0, 1 - dampening)
    return n | {"share": share}


def sgd(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``b <- m b + (1 - d) g``, ``p <- p - lr b``; with Nesterov momentum ``p <- p - lr (g + m b)``."""
    g = with_weight_decay(p, g, n, modes)
    if "momentum" not in n:
        return torch.addcmul(p, g, -n["lr"]), state
    buffer = torch.addcmul(n["momentum"] * state["momentum_buffer"], g, n["share"])
    direction = torch.addcmul(g, buffer, n["momentum"]) if modes.get("nesterov") else buffer
    return torch.addcmul(p, direction, -n["lr"]), {"momentum_buffer": buffer}


def adam_numbers(n: Numbers, t: Tensor) -> Numbers:
    beta1, beta2 = n["betas.0"], n["betas.1"]
    corrected = {"rate": n["lr"] / (1 - beta1**t), "root": (1 - beta2**t).sqrt()}
    shrink = {"shrink": 1 - n["lr"] * n["weight_decay"]} if "weight_decay" in n else {}
    return n | corrected | shrink | {"rest1": 1 - beta1, "rest2": 1 - beta2}


def adam(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``p <- p - lr m' / (sqrt(v') + eps)``, with the bias-corrected averages m' of g and v' of its square."""
    if not modes["decoupled_weight_decay"]:
        g = with_weight_decay(p, g, n, modes)
    else:
        g = -g if modes.get("maximize") else g
        p = n["shrink"] * p if "shrink" in n else p
    mean = torch.lerp(state["exp_avg"], g, n["rest1"].expand_as(g))
    square = torch.addcmul(n["betas.1"] * state["exp_avg_sq"], n["rest2"] * g, g)
    new, largest = {"exp_avg": mean, "exp_avg_sq": square}, square
    if modes.get("amsgrad"):
        largest = new["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], square)
    return p - n["rate"] * mean / (largest.sqrt() / n["root"] + n["eps"]), new


def rmsprop_numbers(n: Numbers, t: Tensor) -> Numbers:
    return n | {"rest": 1 - n["alpha"]}


def rmsprop(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``p <- p - lr g / (sqrt(v) + eps)``, with v the average of g^2, minus the squared average of g if centered."""
    g = with_weight_decay(p, g, n, modes)
    square = torch.addcmul(n["alpha"] * state["square_avg"], n["rest"] * g, g)
    new, variance = {"square_avg": square}, square
    if modes.get("centered"):
        mean = new["grad_avg"] = torch.lerp(state["grad_avg"], g, n["rest"].expand_as(g))
        variance = torch.addcmul(square, -mean, mean)
    root = variance.sqrt() + n["eps"]
    without_momentum = p - n["lr"] * g / root
    if "momentum" not in n:
        return without_momentum, new
    buffer = new["momentum_buffer"] = n["momentum"] * state["momentum_buffer"] + g / root
    return torch.where(n["momentum"] == 0, without_momentum, torch.addcmul(p, buffer, -n["lr"])), new


def with_weight_decay(p: Tensor, g: Tensor, n: Numbers, modes: dict[str, Any]) -> Tensor:
    """Return the gradient to descend: with its sign changed if ``maximize``, plus ``weight_decay * p``."""
    g = -g if modes.get("maximize") else g
    return torch.addcmul(g, p, n["weight_decay"]) if "weight_decay" in n else g


SGD_NUMBERS = ("lr", "momentum", "dampening", "weight_decay")
ADAM_NUMBERS = ("lr", "betas.0", "betas.1", "eps", "weight_decay")
RMSPROP_NUMBERS = ("lr", "alpha", "eps", "weight_decay", "momentum")
RMSPROP_BUFFERS = ("square_avg", "grad_avg", "momentum_buffer")
ADAM = Rule(ADAM_NUMBERS, adam_numbers, adam, ("exp_avg", "exp_avg_sq", "max_exp_avg_sq"))
RULES = {
    "torch.optim.SGD": Rule(SGD_NUMBERS, sgd_numbers, sgd, ("momentum_buffer",)),
    "torch.optim.Adam": ADAM,
    "torch.optim.AdamW": ADAM,
    "torch.optim.RMSprop": Rule(RMSPROP_NUMBERS, rmsprop_numbers, rmsprop, RMSPROP_BUFFERS),
}
MODES = ("nesterov", "maximize", "amsgrad", "centered", "decoupled_weight_decay")  # flags that a stack shares
OPTIONAL = ("momentum", "dampening", "weight_decay")  # numbers that are left out if they are 0 for all models
BOUNDS = {"dampening": (-torch.inf, torch.inf, "()")} | {
    key.removeprefix("optimizer."): bounds[:3] for key, bounds in NUMBERS.items() if key.startswith("optimizer.")
}
