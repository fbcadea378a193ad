"""LBFGS that converges to the last digits of the dtype."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

# A line search compares losses. Rounding may hide a gain below eps ** ROUNDING of the loss, eps being the dtype's.
ROUNDING = 0.75
SCALES = {torch.float64: 2.0**60, torch.float32: 2.0**30}  # their squares are far below overflow


class LBFGS(torch.optim.LBFGS):
    """PyTorch's LBFGS, changed in two ways so that it does not stop some digits too early.

    PyTorch ignores curvature where ``y^T s <= 1e-10``, which is all of it near the optimum of ill-conditioned data.
    This class minimises the loss times a power of two, which changes neither directions nor digits.

    PyTorch's line search compares losses, which cannot show gains below their rounding error. Once a step has not
    lowered the loss, and no larger gain is expected, this class takes full quasi-Newton steps, which need only
    gradients (Nocedal & Wright, *Numerical Optimization*, 2nd ed., sec. 6.1 and 7.2). If these do not lower the loss
    either, further steps leave the parameters unchanged until the loss changes.

    The arguments are those of `torch.optim.LBFGS`.

    Raises:
        ValueError: if ``max_iter`` or ``history_size`` is below 1, or ``line_search_fn`` is unknown.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        group = self.param_groups[0]
        for name in ("max_iter", "history_size"):
            if not isinstance(group[name], int) or group[name] < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {group[name]}")
        if group["line_search_fn"] not in (None, "strong_wolfe"):
            raise ValueError(f"line_search_fn must be strong_wolfe or null, got {group['line_search_fn']}")
        group["stalled"] = None  # the loss that no step lowers; in the group, since checkpoints save it

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        """Take up to ``max_iter`` iterations, and return the loss before them."""
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
            if expected_gain <= torch.finfo(loss.dtype).eps ** ROUNDING * loss.abs() and group["line_search_fn"]:
                group["line_search_fn"] = None
            else:
                group["stalled"] = state["prev_loss"] / scale
        return loss / scale
