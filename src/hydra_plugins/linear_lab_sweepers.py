"""What Hydra discovers: it takes plugins from this package alone."""

from linear_lab.sweep import sweeper


class GridSweeper(sweeper.GridSweeper):
    """``hydra/sweeper=grid``."""


class SearchSweeper(sweeper.SearchSweeper):
    """``hydra/sweeper=search``."""
