"""The models of a stack at one moment."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from linear_lab.dashboard.callbacks import coefficients
from linear_lab.data import Schema


@dataclass
class Snapshot:
    """The models at one moment, or each at its own.

    Attributes:
        step: of each, ``(J,)``; -1 where there is none yet.
        weight: ``(J, T, F)``.
        bias: ``(J, T)`` or None.
        tensors: the optimizer's, of weight and bias.
        schedulers: state of each model's scheduler, if there are such.
        rates: learning rate of each model's optimizer, if there are schedulers.
    """

    step: Tensor
    weight: Tensor
    bias: Tensor | None
    tensors: list[dict[str, Tensor]]
    schedulers: list[dict[str, Any]]
    rates: list[float]

    def update(self, new: "Snapshot", which: Tensor) -> None:
        """Take some of the models from another snapshot."""
        if any(new.tensors) and not any(self.tensors):  # it was taken before the first step
            self.tensors = copy.deepcopy(new.tensors)
        for mine, theirs in zip(self.values(), new.values(), strict=False):
            mine[which] = theirs[which]
        for job in which.nonzero()[:, 0].tolist() if self.schedulers else ():
            self.schedulers[job], self.rates[job] = new.schedulers[job], new.rates[job]

    def values(self) -> list[Tensor]:
        """Return all tensors."""
        of_optimizer = [values for tensors in self.tensors for values in tensors.values()]
        return [self.step, self.weight, *([] if self.bias is None else [self.bias]), *of_optimizer]

    def of_model(self, job: int) -> dict[str, Tensor]:
        """Return copies of one model's tensors, in one piece of memory: a checkpoint is written faster so."""
        named = {"weight": self.weight, **({} if self.bias is None else {"bias": self.bias})}
        named |= {f"{k}.{name}": values for k, tensors in enumerate(self.tensors) for name, values in tensors.items()}
        flat = torch.cat([values[job].flatten() for values in named.values()])
        pieces = torch.split(flat, [values[job].numel() for values in named.values()])
        return {name: piece.view(values.shape[1:]) for (name, values), piece in zip(named.items(), pieces, strict=True)}

    def state_dict(self) -> dict[str, Any]:
        """Return plain containers and tensors, for a checkpoint."""
        return dict(vars(self))


def kept(values: Tensor) -> Tensor:
    """Copy a tensor out of the training, to the CPU."""
    return values.detach().cpu().clone()


def in_file_units(schema: Schema, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Turn weight and bias of training into those of the file; as they are where the units are the same."""
    if not schema.standardized:
        return weight, bias
    return schema.tensors_in_file_units(weight.double(), None if bias is None else bias.double())


def columns(schema: Schema, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    """Return the coefficients of all models, ``(J,)`` each, by tag as `coefficients` names them: singly, or norms."""
    units = in_file_units(schema, weight, bias)
    flat = [values.double().flatten(1) for values in units if values is not None]
    first = {"weight": units[0][0].tolist(), "bias": None if units[1] is None else units[1][0].tolist()}
    names = list(coefficients("param", first, schema.x, schema.labels or schema.y))
    if len(names) == sum(values.shape[1] for values in flat):
        return dict(zip(names, torch.cat(flat, 1).T, strict=True))
    return dict(zip(names, [values.norm(dim=1) for values in flat], strict=True))
