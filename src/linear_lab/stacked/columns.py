"""Jobs that are trained together: one config, and columns for what differs."""

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

from linear_lab.runs.fingerprints import Path, leaves

if TYPE_CHECKING:
    import polars as pl

SEED, ORDER = ("seed",), ("data", "order_seed")


class Column(NamedTuple):
    """A leaf whose value differs between jobs.

    Attributes:
        values: the distinct ones.
        codes: which of them each job has, ``(J,)``.
    """

    values: list[Any]
    codes: "np.ndarray[Any, Any]"

    def of_jobs(self) -> torch.Tensor:
        """Return the numbers of the jobs, ``(J,)`` float64."""
        return torch.tensor(self.values, dtype=torch.float64)[torch.from_numpy(self.codes.astype(np.int64))]

    def only(self, which: "np.ndarray[Any, Any]") -> "Column":
        """Return the column of some of the jobs, without values that none of them has."""
        found, codes = np.unique(self.codes[which], return_inverse=True)
        return Column([self.values[code] for code in found], codes)


@dataclass
class Group:
    """Jobs that are trained together.

    Attributes:
        rows: of the plan.
        config: of the first job, resolved.
        columns: the leaves in which the configs of the others differ from it.
    """

    rows: "pl.DataFrame"
    config: dict[str, Any]
    columns: dict[Path, Column]

    def only(self, which: "np.ndarray[Any, Any]") -> "Group":
        """Return a group of some of the jobs, in the order given."""
        columns = {path: column.only(which) for path, column in self.columns.items()}
        shared = {path: column.values[0] for path, column in columns.items() if len(column.values) == 1}
        differing = {path: column for path, column in columns.items() if path not in shared}
        return Group(self.rows[which], with_values(self.config, shared), differing)

    def numbers(self, group: str, names: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return numbers of a config group by name: ``(J,)``, or 0-dimensional where all jobs agree; float64."""
        constant = {".".join(path[1:]): value for path, value in leaves(self.config[group], (group,))}
        return {
            name: self.columns[path].of_jobs()
            if (path := (group, *name.split("."))) in self.columns
            else torch.tensor(float(constant.get(name, defaults.get(name, 0.0))), dtype=torch.float64)
            for name in names
        }


def distinct(group: Group, name: str) -> "Iterator[tuple[dict[str, Any], np.ndarray[Any, Any]]]":
    """Yield the distinct values of a config group, and which jobs have them."""
    columns = {path: column for path, column in group.columns.items() if path[0] == name}
    for codes in np.unique(np.stack([c.codes for c in columns.values()], 1), axis=0) if columns else ():
        values = {path: column.values[code] for (path, column), code in zip(columns.items(), codes, strict=True)}
        which = np.logical_and.reduce([c.codes == code for c, code in zip(columns.values(), codes, strict=True)])
        yield with_values(group.config, values)[name], which


def with_values(config: dict[str, Any], values: dict[Path, Any]) -> dict[str, Any]:
    """Return a config with other values in some of its leaves."""
    changed = copy.deepcopy(config)
    for path, value in values.items():
        node: Any = changed
        for key in path[:-1]:
            node = node[int(key) if isinstance(node, list) else key]
        node[int(path[-1]) if isinstance(node, list) else path[-1]] = value
    return changed
