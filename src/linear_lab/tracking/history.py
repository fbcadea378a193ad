"""The metrics of a run over its steps, as a table."""

import polars as pl
from lightning.pytorch import Callback, LightningModule, Trainer


class History(Callback):
    """Keeps the metrics of each validation, and the module."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.model: LightningModule

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.model = pl_module
        metrics = {name: value.item() for name, value in trainer.callback_metrics.items() if name != "step"}
        self.rows.append({"step": trainer.global_step, **metrics})

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.model = pl_module

    def frame(self) -> pl.DataFrame:
        """Return one row per validation: ``step`` and each metric."""
        return pl.DataFrame(self.rows, infer_schema_length=None)
