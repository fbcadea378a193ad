"""What Hydra discovers: it takes plugins from this package alone."""

from linear_lab.sweep import launchers, search_sweeper, stacked_launcher, sweeper


class LocalLauncher(launchers.LocalLauncher):
    """``hydra/launcher=local``."""


class StackedLauncher(stacked_launcher.StackedLauncher):
    """``hydra/launcher=stacked``."""


class GridSweeper(sweeper.GridSweeper):
    """``hydra/sweeper=grid``."""


class SearchSweeper(search_sweeper.SearchSweeper):
    """``hydra/sweeper=search``."""
