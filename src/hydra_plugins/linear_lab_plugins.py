"""The sweepers and launchers of linear_lab, in the package in which Hydra looks for plugins.

Hydra imports this file in each command. The sweepers, which need polars and Optuna, are imported when a sweep begins.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper

from linear_lab import UserError
from linear_lab.sweep import launchers
from linear_lab.terminal.layout import failure, installing


class LocalLauncher(launchers.LocalLauncher):
    """``hydra/launcher=local``."""


class StackedLauncher(launchers.StackedLauncher):
    """``hydra/launcher=stacked``."""


class GridSweeper(Sweeper):
    """``hydra/sweeper=grid``."""

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def setup(self, **context: Any) -> None:
        from linear_lab.sweep.sweeper import GridSweeper

        self.sweeper = GridSweeper(**self.arguments, **context)

    def sweep(self, arguments: list[str]) -> None:
        self.sweeper.sweep(arguments)


class SearchSweeper(GridSweeper):
    """``hydra/sweeper=search``."""

    def setup(self, **context: Any) -> None:
        try:
            from linear_lab.sweep.search_sweeper import SearchSweeper
        except ImportError as error:
            message = f"sweep=search: Optuna is missing ({error}); install it by {installing('search')}"
            raise failure(UserError(message)) from error
        self.sweeper = SearchSweeper(**self.arguments, **context)
