"""What Hydra discovers: it takes plugins from this package alone.

Every command imports this module, so the sweepers import polars only once a sweep starts.
"""

from typing import Any

from hydra.plugins.sweeper import Sweeper

from linear_lab.sweep import launchers, stacked_launcher


class LocalLauncher(launchers.LocalLauncher):
    """``hydra/launcher=local``."""


class StackedLauncher(stacked_launcher.StackedLauncher):
    """``hydra/launcher=stacked``."""


class GridSweeper(Sweeper):
    """``hydra/sweeper=grid``."""

    def __init__(self, **options: Any) -> None:
        self.options = options

    def create(self) -> Any:
        from linear_lab.sweep.sweeper import GridSweeper

        return GridSweeper(**self.options)

    def setup(self, **context: Any) -> None:
        self.sweeper = self.create()
        self.sweeper.setup(**context)

    def sweep(self, arguments: list[str]) -> Any:
        return self.sweeper.sweep(arguments)


class SearchSweeper(GridSweeper):
    """``hydra/sweeper=search``."""

    def create(self) -> Any:
        from linear_lab.sweep.search_sweeper import SearchSweeper

        return SearchSweeper(**self.options)
