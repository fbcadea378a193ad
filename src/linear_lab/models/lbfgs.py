"""LBFGS that converges to the last digits."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# The line search compares losses. It may not see a gain below eps ** BLIND of the loss, where eps is the dtype's.
BLIND = 0.75
SCALES = {torch.float64: 2.0**60, torch.float32: 2.0**30}  # whose squares are far from overflow


class LBFGS(torch.optim.LBFGS):
    """PyTorch's LBFGS, without two causes for which it stops some digits too early.

    It ignores curvature where ``y^T s <= 1e-10``, which is all of it near the optimum of ill-conditioned data. Here
    it minimises the loss times a power of two, which changes neither a direction nor a digit.

    Its line search compares losses, and a loss cannot show gains below its rounding error. Once a step has not
    lowered the loss, and no larger gain is expected, full quasi-Newton steps follow, which need only gradients
    (Nocedal & Wright, *Numerical Optimization*, 2nd ed., sec. 6.1 and 7.2). Where these do not help either, further
    steps leave the parameters as they are, until the loss changes.

    Arguments are those of `torch.optim.LBFGS`.

    Raises:
        ValueError: for a ``max_iter`` or ``history_size`` below 1, or an unknown ``line_search_fn``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        group = self.param_groups[0]
        for name in ("max_iter", "history_size"):
            if not isinstance(group[name], int) or group[name] < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {group[name]}")
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ValueError(f"line_search_fn must be strong_wolfe or null, got {group['line_search_fn']}")
        group["stalled"] = None  # the loss that no step lowers; kept in the group, which checkpoints save

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations; returns the loss before them."""
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
            expected_gain = (state["prev_flat_grad"] @ state["d"]).abs()  # of a full step, to first order
            if expected_gain <= torch.finfo(loss.dtype).eps ** BLIND * loss.abs() and group["line_search_fn"]:
                group["line_search_fn"] = None
            else:
                group["stalled"] = state["prev_loss"] / scale
        return loss / scale
