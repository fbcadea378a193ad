"""The package's Python interface, for notebooks and scripts: compose a config, train a run, train a sweep."""

import logging
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from linear_lab import CONF, UserError
from linear_lab.cli import check_config_dir, in_order
from linear_lab.config import make_paths_absolute, register_resolvers, without_calls
from linear_lab.overrides import check
from linear_lab.runs import atomic
from linear_lab.runs.folder import CONFIG, OVERRIDES, Run

if TYPE_CHECKING:
    import polars as pl
    from lightning.pytorch import LightningModule

    from linear_lab.runs.record import Record


@dataclass(frozen=True)
class Result:
    """The result of a run.

    Attributes:
        folder: the run folder.
        record: the content of its result.json: status, steps, metrics, parameters, optimum.
        history: one row per validation, first that of the initial model: ``step`` (int64) and each metric (float64).
        model: the module, with the weights of the best checkpoint if there is one, else with the final weights.
    """

    folder: Path
    record: "Record"
    history: "pl.DataFrame"
    model: "LightningModule"


def compose(overrides: Sequence[str] = (), config_dir: str | Path | None = None) -> DictConfig:
    """Compose the config of a run, as ``python -m linear_lab.train`` would.

    Args:
        overrides: as on the command line: ``["optimizer=adam", "optimizer.lr=0.05"]``.
        config_dir: a folder with option files of your own.

    Raises:
        UserError: for an unknown option, and for a key that nothing reads; the message names the nearest one.

    >>> compose(["optimizer.lr=0.05"]).optimizer.lr
    0.05
    """
    register_resolvers()
    lines = in_order(list(overrides), {})
    folder = None if config_dir is None else str(config_dir)
    check_config_dir(folder)
    check(lines, "train", {}, folder, trusted=True, multirun=False)
    where = [] if folder is None else [f"hydra.searchpath=[file://{Path(folder).absolute()}]"]
    GlobalHydra.instance().clear()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [*lines, *where])
    OmegaConf.set_struct(cfg, True)
    return cfg


def train_run(cfg: DictConfig, folder: str | Path | None = None, *, show: bool = False) -> Result:
    """Train a composed config, as ``python -m linear_lab.train`` would.

    Args:
        cfg: from `compose`; its values may be changed before.
        folder: the run folder; None creates a new one in ``cfg.output_root``.
        show: whether to print what the command prints.

    Raises:
        UserError: for each mistake of the user, and if the run diverged; result.json has the same message.
    """
    from linear_lab.fitting.run import train_in
    from linear_lab.terminal import layout
    from linear_lab.tracking.history import History

    cfg = cfg.copy()
    make_paths_absolute(cfg, Path.cwd())
    files = {CONFIG: OmegaConf.to_yaml(without_calls(cfg)), OVERRIDES: "[]\n"}
    name = str(cfg.optimizer.get("_target_", "run")).rpartition(".")[2].lower()
    if folder is None:
        claimed = Run.new(Path(cfg.output_root, "runs"), name, files)
    else:
        with suppress(FileExistsError):
            atomic.make(Path(folder))
        claimed = Run(Path(folder)).claimed(files)
    history = History()
    logging.captureWarnings(True)  # libraries' warnings go to the run's log
    try:
        with claimed as run:
            train_in(run, cfg, (), layout.screen() if show else Console(quiet=True), [history])
    finally:
        logging.captureWarnings(False)
    return Result(run.path, run.record, history.frame(), history.model)


def train_sweep(
    overrides: Sequence[str], name: str, *, config_dir: str | Path | None = None, output_root: str | Path = "outputs"
) -> "pl.DataFrame":
    """Train a sweep in a new process, as ``python -m linear_lab.train -m`` would, or continue it.

    Args:
        overrides: values for all jobs, and values to try: ``["launch=stacked", "optimizer.lr=0.01,0.1"]``.
        name: the sweep's name; the same name trains only what is missing.
        config_dir: a folder with option files of your own.
        output_root: the sweep's folder is ``<output_root>/sweeps/<name>``.

    Returns:
        The leaderboard, from ``leaderboard.csv``: one row per job, best first.

    Raises:
        UserError: if the command failed; it has the command's message.
    """
    import polars as pl

    options: list[Any] = ["--config-dir", config_dir] if config_dir is not None else []
    typed = [f"name={name}", f"output_root={Path(output_root).absolute()}", *overrides]
    command = [sys.executable, "-m", "linear_lab.train", "-m", *map(str, options), *typed]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise UserError(done.stderr.strip().removeprefix("error: ") or done.stdout.strip())
    return pl.read_csv(Path(output_root, "sweeps", name, "leaderboard.csv"), infer_schema_length=None)
