"""What a config resolves to while it is composed, and what is done to it before anything is built. Imports no torch."""

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
OF_HYDRA = ("hydra", "defaults")  # nodes of a config that only Hydra reads, and acts upon
CALL = re.compile(r"\$\{(?![\w.\[\]]+\})")  # a resolver: an interpolation other than ${key}
PATHS = ("data.path", "ckpt_path", "output_root")  # keys that name what a run reads, or where its loggers write
new_sweep = functools.cache(atomic.new)  # the folder of a sweep is resolved more than once
BUILT = ("data", "model", "loss", "optimizer", "trainer")  # groups that cannot be empty


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, with its interpolations resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()}


def without_calls(cfg: DictConfig | ListConfig) -> DictConfig | ListConfig:
    """Return a config in which the value stands for what a resolver computes, as in ``${oc.env:HOME}``.

    >>> without_calls(OmegaConf.create({"a": 1, "b": "${a}", "c": "${oc.decode:'[1,2]'}"}))
    {'a': 1, 'b': '${a}', 'c': [1, 2]}
    """
    settled = cfg.copy()
    for keys, value in leaves(OmegaConf.to_container(cfg)):
        if isinstance(value, str) and CALL.search(value):
            OmegaConf.update(settled, path := ".".join(keys), OmegaConf.select(cfg, path))
    return settled


def saved_config(run: Run) -> DictConfig:
    """Read the config of a run, without what only Hydra reads; what it may build says `trust.check_targets`.

    Raises:
        UserError: if it cannot be read, has not all that a run needs, or a value would call a function.
    """
    try:
        cfg = OmegaConf.load(run.path / CONFIG)
        if not isinstance(cfg, DictConfig):
            raise ValueError("it is no mapping")
        cfg = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in OF_HYDRA])
        for pattern, resolve in ((CALL, False), (re.compile(r"\$\{"), True)):
            # resolved, two values may have become a reference to a third
            for keys, value in leaves(OmegaConf.to_container(cfg, resolve=resolve)):
                if isinstance(value, bytes) or pattern.search(str(value)):
                    raise ValueError(f"{'.'.join(keys)}={value} is computed when it is read; write its value there")
        plain = as_dict(cfg)
        wrong = [group for group in GROUPS if not isinstance(plain.get(group, ...), dict | None)]
        wrong += [group for group in BUILT if group not in wrong and "_target_" not in (plain[group] or {})]
        wrong += [key for key in ("seed", "metric", "console") if key not in plain]
        if wrong:
            raise ValueError(f"{', '.join(wrong)}: missing, or not what a run needs")
    except (OSError, ValueError, RecursionError, YAMLError, OmegaConfBaseException) as error:
        remedy = "put back what it was, or train anew"
        raise UserError(f"{run.path / CONFIG}: cannot be read ({first_line(error)}); {remedy}") from None
    return cfg


def absolute(path: Any, folder: str | Path) -> Any:
    """Return a path seen from ``folder`` as an absolute one; None stays."""
    return str(Path(folder, Path(str(path)).expanduser()).absolute()) if path else path


def make_paths_absolute(cfg: DictConfig, folder: str | Path, keys: Iterable[str] = PATHS) -> None:
    """Let a config find its files from any folder: relative paths start at ``folder``."""
    for key in keys:
        if path := OmegaConf.select(cfg, key):
            OmegaConf.update(cfg, key, absolute(path, folder))


def register_resolvers() -> None:
    """Let the config make the folder of a sweep, and count processors."""
    for resolver in (sweep_folder, workers, gpus):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


@contextmanager
def new_run(cfg: DictConfig, overrides: Sequence[str]) -> Iterator[Run]:
    """Make the run folder of a command, or take the one that ``hydra.run.dir`` names, and hold it.

    Before torch is imported: from the first moment on a folder has its config and its record.
    """
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
            os.chdir(run.path)  # Hydra goes back in the end
        yield run


def described(cfg: DictConfig, overrides: Sequence[str]) -> dict[str, str]:
    """Return what a run folder says of its config: texts by the names of their files."""
    whole = OmegaConf.to_yaml(HydraConfig.instance().cfg)
    return {CONFIG: OmegaConf.to_yaml(without_calls(cfg)), OVERRIDES: OmegaConf.to_yaml(list(overrides)), HYDRA: whole}


def sweep_folder(parent: str, name: str | None) -> str:
    """Make the folder of a sweep, or find the one of that name."""
    try:
        if name is None:
            return str(new_sweep(parent))
        folder = Path(parent).expanduser() / str(name)
        if not re.fullmatch(rf"(?=[^\W_])[\w.=+-]{{1,{atomic.LONGEST_NAME}}}(?<![.-])", str(name)):
            raise UserError(
                f"name={name}: it is a folder's name, of letters, digits and . _ = + -, at most {atomic.LONGEST_NAME}, "
                "and begins with a letter or digit; try name=study1"
            )
        atomic.make(folder, exist_ok=True)
    except UserError as error:  # OmegaConf would wrap it into an error of its own
        raise failure(error) from error
    return str(folder)


def workers(accelerator: str) -> int:
    """How many jobs run at once on this machine: one per core, or one per GPU where they train on one."""
    if accelerator in ("gpu", "cuda", "auto"):
        import torch

        if torch.cuda.device_count() or accelerator != "auto":
            return max(torch.cuda.device_count(), 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(accelerator: str, devices: Any) -> Any:
    """How many GPUs a job needs; None where it trains on the CPU."""
    return devices if accelerator in ("gpu", "cuda") else None
