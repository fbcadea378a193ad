"""Experiments with linear models under gradient descent."""

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from linear_lab.interface import Result, compose, train_run, train_sweep

__all__ = ["Result", "UserError", "compose", "train_run", "train_sweep"]
__version__ = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]  # None: installed from a wheel, which has conf/
CONF = (CHECKOUT or PACKAGE) / "conf"


class UserError(Exception):
    """A mistake of the user; its message says what is wrong, where, and what to do."""


def __getattr__(name: str) -> Any:
    """Import `interface` at the first use of its names: it imports Hydra, which not each command needs."""
    if name in __all__:
        return getattr(importlib.import_module("linear_lab.interface"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
