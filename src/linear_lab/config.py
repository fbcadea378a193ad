"""What a config resolves to while it is composed, and what is done to it before anything is built. Imports no torch."""

import os
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.runs.fingerprints import leaves
from linear_lab.runs.folder import CALL
from linear_lab.terminal.layout import failure


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


def absolute(path: Any, folder: str | Path) -> Any:
    """Return a path seen from ``folder`` as an absolute one; None stays."""
    return str(Path(folder, Path(str(path)).expanduser()).absolute()) if path else path


def make_paths_absolute(cfg: DictConfig, folder: str | Path) -> None:
    """Let a config find its data file from any folder: relative paths start at ``folder``."""
    if cfg.data.get("path"):
        cfg.data.path = absolute(cfg.data.path, folder)


def register_resolvers() -> None:
    """Let the config make folders, and count processors."""
    for resolver in (new_folder, sweep_folder, workers, gpus):
        OmegaConf.register_new_resolver(resolver.__name__, resolver, replace=True)


def new_folder(parent: str, optimizer: str = "") -> str:
    """Make the folder of a run or a sweep, before Hydra writes there."""
    try:
        return atomic.new(parent, optimizer)
    except UserError as error:  # OmegaConf would wrap it into an error of its own
        raise failure(error) from error


def sweep_folder(parent: str, name: str | None) -> str:
    """Make the folder of a sweep, or find the one of that name."""
    if name is None:
        return new_folder(parent)
    folder = Path(parent).expanduser() / str(name)
    try:
        if not re.fullmatch(rf"(?=[^\W_])[\w.=+-]{{1,{atomic.LONGEST_NAME}}}(?<![.-])", str(name)):
            raise UserError(
                f"name={name}: it is a folder's name, of letters, digits and . _ = + -, at most {atomic.LONGEST_NAME}, "
                "and begins with a letter or digit; try name=study1"
            )
        try:
            atomic.make(folder)
        except FileExistsError:
            atomic.check_room(folder)
    except UserError as error:
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
