"""Making, saving and reading the config of a run, before anything is built. Imports no torch."""

import functools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, ListConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.fingerprints import leaves
from linear_lab.runs.folder import CONFIG, HYDRA, OVERRIDES, Run
from linear_lab.terminal.layout import failure
from linear_lab.text import first_line

GROUPS = ("data", "model", "loss", "optimizer", "scheduler", "trainer", "callbacks", "logger")
OF_HYDRA = ("hydra", "defaults")  # nodes of a config that are for Hydra only
CALL = re.compile(r"\$\{(?![\w.\[\]]+\})")  # a call of a resolver: an interpolation other than ${key}
PATHS = ("data.path", "ckpt_path", "output_root")  # keys whose values are paths
new_sweep = functools.cache(atomic.new)  # cached, as Hydra resolves the folder of a sweep more than once
BUILT = ("data", "model", "loss", "optimizer", "trainer")  # groups that cannot be empty


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, with its interpolations resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()}


def without_calls(cfg: DictConfig | ListConfig) -> DictConfig | ListConfig:
    """Return a config in which each call of a resolver, such as ``${oc.env:HOME}``, is replaced by its value.

    >>> without_calls(OmegaConf.create({"a": 1, "b": "${a}", "c": "${oc.decode:'[1,2]'}"}))
    {'a': 1, 'b': '${a}', 'c': [1, 2]}
    """
    settled = cfg.copy()
    for keys, value in leaves(OmegaConf.to_container(cfg)):
        if isinstance(value, str) and CALL.search(value):
            OmegaConf.update(settled, path := ".".join(keys), OmegaConf.select(cfg, path))
    return settled


def saved_config(run: Run) -> DictConfig:
    """Read the config of a run, without Hydra's own nodes; a UserError refuses values that would call a function."""
    try:
        cfg = OmegaConf.load(run.path / CONFIG)
        if not isinstance(cfg, DictConfig):
            raise ValueError("it is not a mapping")
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OF_HYDRA])
        for pattern, resolve in ((CALL, False), (re.compile(r"\$\{"), True)):
            # after resolving, two values together may refer to a third
            for keys, value in leaves(OmegaConf.to_container(cfg, resolve=resolve)):
                if isinstance(value, bytes) or pattern.search(str(value)):
                    raise ValueError(f"{'.'.join(keys)}={value} is an expression; write its value instead")
        plain = as_dict(cfg)
        wrong = [group for group in GROUPS if not isinstance(plain.get(group, ...), dict | None)]
        wrong += [group for group in BUILT if group not in wrong and "_target_" not in (plain[group] or {})]
        wrong += [key for key in ("seed", "metric", "console") if key not in plain]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: missing, or of the wrong kind")
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        remedy = "restore the file, or train a new run"
        raise UserError(f"{run.path / CONFIG}: cannot be read ({first_line(error)}); {remedy}") from None
    return cfg


def absolute(path: Any, folder: str | Path) -> Any:
    """Return a path that is relative to ``folder`` as an absolute path; None stays None."""
    return str(Path(folder, Path(str(path)).expanduser()).absolute()) if path else path


def make_paths_absolute(cfg: DictConfig, folder: str | Path, keys: Iterable[str] = PATHS) -> None:
    """Make the paths in a config absolute; relative ones start at ``folder``."""
    for key in keys:
        if path := OmegaConf.select(cfg, key):
            OmegaConf.update(cfg, key, absolute(path, folder))


def register_resolvers() -> None:
    """Register the functions that conf/ calls: they create the folder of a sweep, and count cores and GPUs."""
    for resolver in (sweep_folder, workers, gpus):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@contextmanager
def new_run(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Run]:
    """Create the run folder, or use ``hydra.run.dir``, and lock it, all before torch is imported."""
    hydra: Any = HydraConfig.get()
    make_paths_absolute(cfg, hydra.runtime.cwd)
    typed = any(item.startswith("hydra.run.dir=") for item in hydra.overrides.hydra)
    if typed or hydra.run.dir != hydra.runtime.cwd:
        claimed: AbstractContextManager[Run] = Run(Path(hydra.runtime.output_dir)).claimed(described(cfg, overrides))
    else:
        parent = Path(hydra.runtime.cwd, Path(str(cfg.output_root)).expanduser(), "runs")
        claimed = Run.new(parent, hydra.runtime.choices.optimizer, described(cfg, overrides))
    with claimed as run:
        with read_write(hydra):
            hydra.run.dir = hydra.runtime.output_dir = str(run.path)
        if hydra.job.chdir:
            os.chdir(run.path)  # Hydra changes back at the end
        yield run


def described(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """Return the config files of a run folder: their texts by file name."""
    whole = OmegaConf.to_yaml(HydraConfig.instance().cfg)
    return {CONFIG: OmegaConf.to_yaml(without_calls(cfg)), OVERRIDES: OmegaConf.to_yaml(list(overrides)), HYDRA: whole}


def sweep_folder(parent: str, name: str | None) -> str:
    """Create the folder of a sweep, or find the one with this name."""
    try:
        if name is None:
            return str(new_sweep(parent))
        folder = Path(parent).expanduser() / str(name)
        if not re.fullmatch(rf"(?=[^\W_])[\w.=+-]{{1,{atomic.LONGEST_NAME}}}(?<![.-])", str(name)):
            raise UserError(
                f"name={name}: the name of a folder, with at most {atomic.LONGEST_NAME} letters, digits and . _ = + -, "
                "must begin with a letter or digit; try name=study1"
            )
        atomic.make(folder, exist_ok=True)
    except UserError as error:  # OmegaConf would wrap it in an error of its own
        raise failure(error) from error
    return str(folder)


def workers(accelerator: str) -> int:
    """Return how many jobs this machine runs at once: one per core, or one per GPU if they train on GPUs."""
    if accelerator in ("gpu", "cuda", "auto"):
        import torch

        if torch.cuda.device_count() or accelerator != "auto":
            return max(torch.cuda.device_count(), 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(accelerator: str, devices: Any) -> Any:
    """Return how many GPUs a job needs; None if it trains on the CPU."""
    return devices if accelerator in ("gpu", "cuda") else None
