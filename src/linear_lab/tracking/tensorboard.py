"""The logger that writes the event file of a run folder."""

import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.graph_pb2 import GraphDef
from tensorboard.compat.proto.summary_pb2 import Summary

from linear_lab import UserError
from linear_lab.runs.atomic import ROOM_REMEDY
from linear_lab.text import printable

LARGEST = float(np.finfo(np.float32).max)
INTERVAL = 1.0  # seconds between two writes to disk
BINS = 32  # per histogram; TensorBoard shows 30


class LazyWriter:
    """Opens the event file of a logger when an attribute is first used."""

    def __init__(self, logger: "RunLogger") -> None:
        self.logger = logger

    def __getattr__(self, name: str) -> Any:
        self.logger.opened = True
        return getattr(self.logger.experiment, name)


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, which writes into the run folder itself, so that TensorBoard shows its name.

    Args:
        save_dir: the run folder.
        purge_step: TensorBoard drops earlier events from this step on, since a resumed run logs them again.
        pictures: whether to log pictures and histograms, which take most of the time of logging.

    Raises:
        ValueError: if pictures is not a bool.
    """

    def __init__(self, save_dir: str, purge_step: int | None = None, pictures: bool = True) -> None:
        if not isinstance(pictures, bool):
            raise ValueError(f"pictures must be true or false, got {pictures}")
        if purge_step is not None:  # TensorBoard reads files in the order of the seconds in their names
            newest = max((int(path.name.split(".")[3]) for path in event_files(Path(save_dir))), default=0)
            while int(time.time()) <= newest <= time.time() + 1:  # unless the clock was set back
                time.sleep(0.05)
        self.pictures = pictures
        self.pending: list[Event] = []
        self.saved = 0.0  # time of the last write
        self.opened = False  # whether there is an event file; it is made with the first event
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step, max_queue=1000)

    @property
    def experiment(self) -> Any:
        """TensorBoard's writer. Lightning asks for it before there is an event, so it makes the file when used."""
        return super().experiment if self.opened else LazyWriter(self)

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """No-op: Lightning's row would say success before training; `hparams` writes the row."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log the scalars that are finite in float32; others break TensorBoard's HPARAMS page."""
        finite = [Summary.Value(tag=name, simple_value=v) for name, v in metrics.items() if abs(v) <= LARGEST]
        self._log(Summary(value=finite), step)

    def log_picture(self, tag: str, png: bytes, step: int) -> None:
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # in a PNG's header
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        self._log(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    def log_histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        values = values[np.isfinite(values)]
        if len(values):
            self.experiment.add_histogram(tag, values, step, bins=BINS)

    def log_text(self, tag: str, markdown: str, step: int) -> None:
        self.experiment.add_text(tag, printable(markdown), step)

    def log_graph_of(self, graph: GraphDef | None) -> None:
        if graph:
            self.experiment.file_writer.add_event(Event(graph_def=graph.SerializeToString()))

    def _log(self, summary: Summary, step: int | None) -> None:
        # Each write wakes SummaryWriter's thread, which competes with training. Without this buffer, a run that
        # validates after each step took 15 s instead of 13 s.
        self.pending.append(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self.saved > INTERVAL:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write all logged events to disk.

        Raises:
            UserError: if the disk is full.
        """
        if not (self.pending or self.opened):
            return
        events, self.pending, self.saved = self.pending, [], time.monotonic()
        try:
            for event in events:
                self.experiment.file_writer.add_event(event, walltime=event.wall_time)
            self.experiment.flush()
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"cannot write events into {self.root_dir}: {reason}; {ROOM_REMEDY}") from error

    def finalize(self, status: str) -> None:
        """Save, and keep the file open: Lightning finalizes after validate, and fit would then open another file."""
        self.save()

    @rank_zero_only
    def close(self) -> None:
        with suppress(UserError, OSError):  # an earlier `save` has raised the error
            self.save()
            if self.opened:
                self.experiment.close()


def event_files(folder: Path) -> list[Path]:
    """Return the event files of loggers in a folder, in the order in which TensorBoard reads them."""
    paths = sorted(folder.glob("events.out.tfevents.*"))
    return [path for path in paths if path.suffix[1:].isdecimal() and path.name.split(".")[3].isdecimal()]
