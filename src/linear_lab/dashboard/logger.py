"""Scalars into the run folder's event file."""

import math
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, with events in the run folder itself: the run's name is the folder's.

    Args:
        save_dir: the run folder.
        purge_step: TensorBoard forgets what was logged from this step on: a resumed run logs it again.
    """

    def __init__(self, save_dir: str, purge_step: int | None = None) -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Write nothing: the config lies in the run folder, and Lightning's record would say -1 or SUCCESS too soon."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, but for NaN and infinity: TensorBoard's HPARAMS view breaks on them."""
        super().log_metrics({name: value for name, value in metrics.items() if math.isfinite(value)}, step)

    @rank_zero_only
    def save(self) -> None:
        """Put what was logged on disk."""
        self.experiment.flush()

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Keep the event file open: Lightning finalizes after each of validate and fit, which would open another."""
        self.save()
