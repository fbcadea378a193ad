"""The reference of a run of a linear model: its optimum and its largest stable learning rate."""

from typing import NamedTuple

from torch import Tensor, nn
from torch.optim import SGD, Optimizer

from linear_lab.theory.least_squares import Optimum, Units, least_squares
from linear_lab.theory.stability import stable_lr


class Reference(NamedTuple):
    """What a run is compared with; a field is None where there is no such value, or where it is not known."""

    optimum: Optimum | None = None
    stable_lr: float | None = None
    weight_decay: float = 0.0  # the optimum minimises the loss and the penalty of this weight decay

    def excess(self, network: nn.Module) -> float | None:
        """Return the loss of an nn.Linear, in training's units, minus the optimum's; None if there is no optimum."""
        if self.optimum is None or not isinstance(network, nn.Linear):
            return None
        bias: Tensor | None = network.bias
        return self.optimum.excess(network.weight.detach().cpu(), None if bias is None else bias.detach().cpu())


def reference(
    network: nn.Module,
    loss: nn.Module,
    optimizer: Optimizer,
    x: Tensor,
    y: Tensor,
    x_units: Units | None = None,
    y_units: Units | None = None,
    optima: dict[float, Optimum] | None = None,
) -> Reference:
    """Return the optimum of an nn.Linear with MSELoss and, for SGD, the largest stable rate; else an empty reference.

    The optimum includes weight decay if the optimizer adds it to the gradient. AdamW subtracts it from the weights
    instead; it converges near the plain least-squares solution. ``optima`` caches the optima by weight decay.
    """
    if not (isinstance(network, nn.Linear) and isinstance(loss, nn.MSELoss)):
        return Reference()
    group, bias, optima = optimizer.param_groups[0], network.bias is not None, {} if optima is None else optima
    decay = 0.0 if group.get("decoupled_weight_decay") else group.get("weight_decay", 0.0)
    if decay not in optima:
        optima[decay] = least_squares(x, y, bias=bias, weight_decay=decay, x_units=x_units, y_units=y_units)
    if type(optimizer) is not SGD or group["maximize"]:
        return Reference(optima[decay], None, decay)
    rule = {name: group[name] for name in ("momentum", "dampening", "nesterov")}
    return Reference(optima[decay], stable_lr(optima[decay].curvature, **rule), decay)
