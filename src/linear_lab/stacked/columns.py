"""Groups of jobs that are trained together: one config, and columns for the values in which the jobs differ."""

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
Array = np.ndarray[Any, Any]


class Column(NamedTuple):
    """A leaf of the config whose value differs between jobs."""

    values: list[Any]  # the distinct values
    codes: Array  # for each job, the index of its value in `values`, (J,)

    def of_jobs(self) -> torch.Tensor:
        """Return the value of each job, ``(J,)`` float64."""
        return torch.tensor(self.values, dtype=torch.float64)[torch.from_numpy(self.codes.astype(np.int64))]

    def only(self, which: Array) -> "Column":
        """Return the column of some of the jobs, without the values that only other jobs have."""
        used, codes = np.unique(self.codes[which], return_inverse=True)
        return Column([self.values[code] for code in used], codes)


@dataclass
class Group:
    """Jobs that are trained together."""

    rows: "pl.DataFrame"  # the rows of the plan, one per job
    config: dict[str, Any]  # the resolved config of the first job
    columns: dict[Path, Column]  # the leaves of the config in which the jobs differ

    def only(self, which: Array) -> "Group":
        """Return a group of some of the jobs, in the order given."""
        columns = {path: column.only(which) for path, column in self.columns.items()}
        shared = {path: column.values[0] for path, column in columns.items() if len(column.values) == 1}
        differing = {path: column for path, column in columns.items() if path not in shared}
        return Group(self.rows[which], with_values(self.config, shared), differing)

    def numbers(self, group: str, names: tuple[str, ...], defaults: dict[str, Any]) -> dict[str, torch.Tensor]:
        """Return numbers of a config group by name, float64: ``(J,)``, or ``()`` if all jobs agree."""
        shared = defaults | {".".join(path): value for path, value in leaves(self.config[group])}
        numbers = {name: torch.tensor(float(shared.get(name, 0.0)), dtype=torch.float64) for name in names}
        columns = {name: self.columns.get((group, *name.split("."))) for name in names}
        return numbers | {name: column.of_jobs() for name, column in columns.items() if column}


def distinct(group: Group, name: str) -> Iterator[tuple[dict[str, Any], Array]]:
    """Yield each distinct value of a config group, and a mask ``(J,)`` of its jobs; nothing if all jobs agree."""
    columns = {path: column for path, column in group.columns.items() if path[0] == name}
    for codes in np.unique(np.stack([c.codes for c in columns.values()], 1), axis=0) if columns else ():
        values = {path: column.values[code] for (path, column), code in zip(columns.items(), codes, strict=True)}
        which = np.logical_and.reduce([c.codes == code for c, code in zip(columns.values(), codes, strict=True)])
        yield with_values(group.config, values)[name], which


def with_values(config: dict[str, Any], values: dict[Path, Any]) -> dict[str, Any]:
    """Return a copy of a config in which some leaves have new values."""
    changed = copy.deepcopy(config)
    for path, value in values.items():
        node: Any = changed
        for key in path[:-1]:
            node = node[int(key) if isinstance(node, list) else key]
        node[int(path[-1]) if isinstance(node, list) else path[-1]] = value
    return changed
