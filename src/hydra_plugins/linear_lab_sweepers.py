"""What Hydra discovers: it takes plugins from this package alone."""

from linear_lab.sweep import search_sweeper, sweeper


class GridSweeper(sweeper.GridSweeper):
    """``hydra/sweeper=grid``."""


class SearchSweeper(search_sweeper.SearchSweeper):
    """``hydra/sweeper=search``."""
