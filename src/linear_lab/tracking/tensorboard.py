"""The run folder's event file."""

import time
from collections.abc import Mapping, Sequence
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

LARGEST = float(np.finfo(np.float32).max)
INTERVAL = 1.0  # seconds between two writes
BINS = 32  # of a histogram: TensorBoard shows 30


class RunLogger(TensorBoardLogger):
    """Lightning's TensorBoardLogger, with events in the run folder itself: the run's name is the folder's.

    Args:
        save_dir: the run folder.
        purge_step: TensorBoard forgets what was logged from this step on: a resumed run logs it again.
        pictures: whether to log what costs most: pictures and histograms.

    Raises:
        ValueError: if pictures is neither true nor false.
    """

    def __init__(self, save_dir: str, purge_step: int | None = None, pictures: bool = True) -> None:
        if not isinstance(pictures, bool):
            raise ValueError(f"pictures must be true or false, got {pictures}")
        if purge_step is not None:
            wait_for_a_new_second(Path(save_dir))
        self.pictures = pictures
        self.kept: list[Event] = []
        self.saved = 0.0  # when
        super().__init__(save_dir, name="", version="", default_hp_metric=False, purge_step=purge_step, max_queue=1000)

    @rank_zero_only
    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        """Write nothing: Lightning's record would say -1, or SUCCESS too soon; `hparams` writes a true one."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write scalars, but for NaN and what is infinite in float32: TensorBoard's HPARAMS view breaks on them."""
        finite = [Summary.Value(tag=name, simple_value=v) for name, v in metrics.items() if abs(v) <= LARGEST]
        self.log_summary(Summary(value=finite), step)  # all in one event: add_scalar would make one of each

    @rank_zero_only
    def log_picture(self, tag: str, png: bytes, step: int) -> None:
        """Write a PNG as it is."""
        width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))  # of its header
        image = Summary.Image(encoded_image_string=png, width=width, height=height, colorspace=3)
        self.log_summary(Summary(value=[Summary.Value(tag=tag, image=image)]), step)

    @rank_zero_only
    def log_histogram(self, tag: str, values: np.ndarray[Any, Any], step: int) -> None:
        """Write how values are spread, but for NaN and infinity."""
        values = values[np.isfinite(values)]
        if len(values):
            self.experiment.add_histogram(tag, values, step, bins=BINS)

    @rank_zero_only
    def log_text(self, tag: str, markdown: str, step: int) -> None:
        """Write what the Text page shows."""
        self.experiment.add_text(tag, markdown, step)

    @rank_zero_only
    def log_layout(self, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> None:
        """Write which charts the Custom Scalars page shows: category -> title -> regular expressions of tags."""
        layout = {
            category: {title: ["Multiline", list(tags)] for title, tags in titles.items()}
            for category, titles in charts.items()
        }
        self.experiment.add_custom_scalars(layout)

    @rank_zero_only
    def log_graph_of(self, graph: GraphDef) -> None:
        """Write what the Graphs page shows."""
        self.experiment._get_file_writer().add_event(Event(graph_def=graph.SerializeToString()))

    @rank_zero_only
    def log_summary(self, summary: Summary, step: int | None = None) -> None:
        """Write a summary as it is, together with what else is logged within `INTERVAL` seconds.

        One by one they would wake PyTorch's writing thread, which then takes its turns from training.
        """
        self.kept.append(Event(wall_time=time.time(), step=step, summary=summary))
        if time.monotonic() - self.saved > INTERVAL:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Put what was logged on disk.

        Raises:
            UserError: if it is full.
        """
        self.saved = time.monotonic()
        try:
            self._hand_over()
            self.experiment.flush()
        except OSError as error:
            raise UserError(
                f"cannot write events into {self.root_dir}: {error.strerror or error}; make room"
            ) from error

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Keep the event file open: Lightning finalizes after each of validate and fit, which would open another."""
        self.save()

    @rank_zero_only
    def close(self) -> None:
        """Put what was logged on disk, and close the event file."""
        with suppress(OSError):  # `save` has told
            self._hand_over()
            self.experiment.close()

    def _hand_over(self) -> None:
        kept, self.kept = self.kept, []
        for event in kept:
            self.experiment._get_file_writer().add_event(event, walltime=event.wall_time)


def event_files(folder: Path) -> list[Path]:
    """Event files that a logger has written, in the order in which TensorBoard reads them."""
    return sorted(path for path in folder.glob("events.out.tfevents.*") if path.suffix[1:].isdigit())


def wait_for_a_new_second(folder: Path) -> None:
    """Wait until a new event file sorts behind those that are there: their names begin with the second."""
    newest = max((int(path.name.split(".")[3]) for path in event_files(folder)), default=0)
    while int(time.time()) <= newest <= time.time() + 1:  # a clock that was set back is not waited for
        time.sleep(0.05)
