"""LBFGS to the last digit."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

BLIND = 0.75  # power of the rounding unit: a gain below that share of the loss is one that the line search may not see
SCALES = {torch.float64: 2.0**60, torch.float32: 2.0**30}  # whose squares are far from overflow


class LBFGS(torch.optim.LBFGS):
    """PyTorch's LBFGS, kept from stopping some digits too early.

    It does so for two reasons. It ignores curvature where ``y^T s <= 1e-10``, which on ill-conditioned data is soon
    all there is: here it is given the loss times a power of two, which changes neither a direction nor a digit.
    And its line search compares losses. Once a step has not lowered the loss, since what is left to gain cannot be
    seen in it, full quasi-Newton steps follow, which need gradients alone (Nocedal & Wright, *Numerical
    Optimization*, 2nd ed., sec. 6.1 and 7.2).

    Where neither helps, the batch is not computed again and again: it is left as it is until its loss is another one.

    Arguments are those of `torch.optim.LBFGS`.

    Raises:
        ValueError: for an argument that cannot work.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        group = self.param_groups[0]
        for name in ("max_iter", "history_size"):
            if not isinstance(group[name], int) or group[name] < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {group[name]}")
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ValueError(f"line_search_fn must be strong_wolfe or null, got {group['line_search_fn']}")
        group["stalled"] = None  # the loss at which nothing helped any more; a group, since checkpoints keep it

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations; returns the loss that they began with."""
        group = self.param_groups[0]
        parameters: list[Tensor] = group["params"]
        scale = SCALES.get(parameters[0].dtype, 1.0)

        def scaled() -> Any:
            loss = closure()
            for parameter in parameters:
                if parameter.grad is not None:
                    parameter.grad.mul_(scale)
            return loss * scale

        if group["stalled"] is not None:
            with torch.enable_grad():
                loss = closure().detach()
            if loss.item() == group["stalled"]:
                return loss
        loss = super().step(scaled).detach()  # type: ignore[no-untyped-call]
        state = self.state[parameters[0]]
        if "d" in state and not state["prev_loss"] < loss:
            promised = (state["prev_flat_grad"] @ state["d"]).abs()  # what a full step would gain, to first order
            if promised <= torch.finfo(loss.dtype).eps ** BLIND * loss.abs() and group["line_search_fn"]:
                group["line_search_fn"] = None
            else:
                group["stalled"] = state["prev_loss"] / scale
        return loss / scale
