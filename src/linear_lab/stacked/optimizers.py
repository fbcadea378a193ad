"""PyTorch's optimizers as functions of one model, whose numbers are tensors: under vmap they may differ.

Those of torch.optim take one learning rate for all models. The rules below are theirs, and products are grouped as
theirs are: in float32 the same gradients give the same bits, or nearly so.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.optim import SGD, Adam, AdamW, Optimizer, RMSprop

Numbers = dict[str, Tensor]  # 0-dimensional, float64
State = dict[str, Tensor]  # of one parameter, in its shape


class Rule(NamedTuple):
    """An optimizer.

    Attributes:
        kind: the class of torch.optim.
        numbers: what may differ from model to model; ``betas`` are ``betas.0`` and ``betas.1``.
        derive: makes of the numbers, and of the number t of the step (from 1), what `update` wants; in float64.
        update: of a parameter, its gradient, its state, what `derive` made (in the parameter's dtype), and the modes;
            returns the new parameter and the new state.
        state: names what is kept of a parameter, given the modes and the names of the numbers that are not 0.
    """

    kind: type[Optimizer]
    numbers: tuple[str, ...]
    derive: Callable[[Numbers, Tensor], Numbers]
    update: Callable[[Tensor, Tensor, State, Numbers, dict[str, Any]], tuple[Tensor, State]]
    state: Callable[[dict[str, Any], Numbers], list[str]]


def sgd_numbers(n: Numbers, t: Tensor) -> Numbers:
    """Of SGD; without momentum the buffer is the gradient itself."""
    if "momentum" not in n:
        return n
    dampening = n.get("dampening", torch.zeros_like(n["lr"]))
    share = torch.where((t == 1) | (n["momentum"] == 0), 1.0, 1 - dampening)
    return n | {"share": share, "decay": torch.where(t == 1, 0.0, n["momentum"])}


def sgd(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``b <- m b + (1 - d) g``, ``p <- p - lr b``; with Nesterov's momentum ``p <- p - lr (g + m b)``."""
    g = decayed(p, g, n, modes)
    if "momentum" not in n:
        return torch.addcmul(p, g, -n["lr"]), state
    buffer = torch.addcmul(n["decay"] * state["momentum_buffer"], g, n["share"])
    direction = torch.addcmul(g, buffer, n["momentum"]) if modes.get("nesterov") else buffer
    return torch.addcmul(p, direction, -n["lr"]), {"momentum_buffer": buffer}


def adam_numbers(n: Numbers, t: Tensor) -> Numbers:
    """Of Adam: the corrections ``1 - beta^t``, and the share of the weights that decay leaves."""
    beta1, beta2 = n["betas.0"], n["betas.1"]
    corrected = {"rate": n["lr"] / (1 - beta1**t), "root": (1 - beta2**t).sqrt()}
    left = {"left": 1 - n["lr"] * n["weight_decay"]} if "weight_decay" in n else {}
    return n | corrected | left | {"rest1": 1 - beta1, "rest2": 1 - beta2}


def adam(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``p <- p - lr m' / (sqrt(v') + eps)`` with the corrected means m' of g and v' of its square."""
    if not modes["decoupled_weight_decay"]:
        g = decayed(p, g, n, modes)
    else:
        g = -g if modes.get("maximize") else g
        p = n["left"] * p if "left" in n else p
    mean = torch.lerp(state["exp_avg"], g, n["rest1"].expand_as(g))
    square = torch.addcmul(n["betas.1"] * state["exp_avg_sq"], n["rest2"] * g, g)
    kept, largest = {"exp_avg": mean, "exp_avg_sq": square}, square
    if modes.get("amsgrad"):
        largest = kept["max_exp_avg_sq"] = torch.maximum(state["max_exp_avg_sq"], square)
    return p - n["rate"] * mean / (largest.sqrt() / n["root"] + n["eps"]), kept


def rmsprop_numbers(n: Numbers, t: Tensor) -> Numbers:
    """Of RMSprop."""
    return n | {"rest": 1 - n["alpha"]}


def rmsprop(p: Tensor, g: Tensor, state: State, n: Numbers, modes: dict[str, Any]) -> tuple[Tensor, State]:
    """``p <- p - lr g / (sqrt(v) + eps)`` with v the mean of g^2, less the squared mean of g if centered."""
    g = decayed(p, g, n, modes)
    square = torch.addcmul(n["alpha"] * state["square_avg"], n["rest"] * g, g)
    kept, variance = {"square_avg": square}, square
    if modes.get("centered"):
        mean = kept["grad_avg"] = torch.lerp(state["grad_avg"], g, n["rest"].expand_as(g))
        variance = torch.addcmul(square, -mean, mean)
    root = variance.sqrt() + n["eps"]
    plain = p - n["lr"] * g / root
    if "momentum" not in n:
        return plain, kept
    buffer = kept["momentum_buffer"] = n["momentum"] * state["momentum_buffer"] + g / root
    return torch.where(n["momentum"] == 0, plain, torch.addcmul(p, buffer, -n["lr"])), kept


def decayed(p: Tensor, g: Tensor, n: Numbers, modes: dict[str, Any]) -> Tensor:
    """Gradient of the loss and of the penalty of weight decay."""
    g = -g if modes.get("maximize") else g
    return torch.addcmul(g, p, n["weight_decay"]) if "weight_decay" in n else g


def adam_state(modes: dict[str, Any], n: Numbers) -> list[str]:
    """What Adam keeps of a parameter."""
    return ["exp_avg", "exp_avg_sq", *["max_exp_avg_sq"] * bool(modes.get("amsgrad"))]


def rmsprop_state(modes: dict[str, Any], n: Numbers) -> list[str]:
    """What RMSprop keeps of a parameter."""
    return ["square_avg", *["grad_avg"] * bool(modes.get("centered")), *["momentum_buffer"] * ("momentum" in n)]


ADAM = ("lr", "betas.0", "betas.1", "eps", "weight_decay")
RULES = {
    f"torch.optim.{rule.kind.__name__}": rule
    for rule in (
        Rule(SGD, ("lr", "momentum", "dampening", "weight_decay"), sgd_numbers, sgd,
             lambda modes, n: ["momentum_buffer"] * ("momentum" in n)),
        Rule(Adam, ADAM, adam_numbers, adam, adam_state),
        Rule(AdamW, ADAM, adam_numbers, adam, adam_state),
        Rule(RMSprop, ("lr", "alpha", "eps", "weight_decay", "momentum"), rmsprop_numbers, rmsprop, rmsprop_state),
    )
}  # fmt: skip
MODES = ("nesterov", "maximize", "amsgrad", "centered", "decoupled_weight_decay")  # what must agree in a stack
BOUNDS = {  # outside of which torch.optim, or this project, refuses a number
    "lr": (0.0, torch.inf, "()"), "momentum": (0.0, torch.inf, "[)"), "dampening": (-torch.inf, torch.inf, "()"),
    "weight_decay": (0.0, torch.inf, "[)"), "betas.0": (0.0, 1.0, "[)"), "betas.1": (0.0, 1.0, "[)"),
    "eps": (0.0, torch.inf, "[)"), "alpha": (0.0, torch.inf, "[)"),
}  # fmt: skip
OPTIONAL = ("momentum", "dampening", "weight_decay")  # numbers that do nothing where they are 0


def within(values: Tensor, low: float, high: float, ends: str) -> Tensor:
    """Tell which values lie in an interval; ``ends`` says which of its ends belong to it, as in ``[)``.

    >>> within(torch.tensor([0.0, 0.5, 1.0]), 0, 1, "[)").tolist()
    [True, True, False]
    """
    above = values >= low if ends[0] == "[" else values > low
    return above & (values <= high if ends[1] == "]" else values < high)
