"""The progress bar of a run."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from linear_lab.terminal.layout import NARROW, number

PIPE_INTERVAL = 30.0  # seconds between two lines of progress in a pipe or a file


class ProgressBar(Callback):
    """Shows one bar for the whole training, with loss and time left; in a pipe or a file, a line now and then."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            *([TextColumn("training"), BarColumn(bar_width=30)] if console.width >= NARROW else []),
            MofNCompleteColumn(),
            TextColumn("loss {task.fields[loss]}{task.fields[metrics]}"),
            TimeRemainingColumn(compact=True, elapsed_when_finished=True),
            console=console,
            auto_refresh=False,  # a thread that refreshes would slow down training
        )
        self.shown = 0.0
        self.interval = 0.1 if console.is_terminal else PIPE_INTERVAL

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        steps = trainer.estimated_stepping_batches
        total = None if steps == float("inf") else steps
        self.task = self.progress.add_task("", total=total, completed=trainer.global_step, loss="-", metrics="")
        self.shown = time.monotonic()
        if self.console.is_terminal:
            self.progress.start()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        now = time.monotonic()
        if now - self.shown > self.interval:
            self.shown = now
            # with manual optimization there may be no loss
            loss = outputs.get("loss") if isinstance(outputs, dict) else None
            self._show(trainer, None if loss is None else loss.item() * trainer.accumulate_grad_batches)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loss = trainer.callback_metrics.get("train/loss")
        self._show(trainer, None if loss is None else loss.item())
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self.console.is_terminal:
            self.progress.stop()
        self.console.print()

    def _show(self, trainer: Trainer, loss: float | None) -> None:
        step, logged = trainer.global_step, trainer.progress_bar_metrics  # logged with prog_bar=True
        metrics = "".join(f"  {name} {number(float(value))}" for name, value in logged.items())
        self.progress.update(self.task, completed=step, loss=number(loss), metrics=metrics)
        if self.console.is_terminal:
            self.progress.refresh()
        else:
            self.console.print(f"training  step {step}  loss {number(loss)}{metrics}")
