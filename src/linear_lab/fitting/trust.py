"""Checks which classes a saved config names, since nothing that comes from disk is trusted."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.utils import get_class
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment, Precision
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.plugins import LayerSync
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.strategies import Strategy
from omegaconf import OmegaConf
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import Dataset, Sampler

from linear_lab import CONF, UserError
from linear_lab.runs.folder import TARGET, TRUSTED, Trust

KINDS: dict[str, type] = {
    "data": LightningDataModule, "model": LightningModule, "loss": nn.Module, "optimizer": Optimizer,
    "scheduler": LRScheduler, "trainer": Trainer, "callbacks": Callback, "logger": Logger,
}  # fmt: skip
PARTS: dict[str, tuple[type, ...]] = {  # classes that may be nested in a group; nn.Module in others
    "model": (nn.Module, Optimizer, LRScheduler),
    "data": (nn.Module, Dataset, Sampler),
    "trainer": (Strategy, Precision, CheckpointIO, ClusterEnvironment, LayerSync, Profiler),
}


def check_targets(config: dict[str, Any], source: Path, trust: Trust = None) -> None:
    """Refuse a config from disk whose ``_target_`` is not allowed, or is not a class of the kind of its group.

    Allowed are classes of linear_lab, torch and Lightning, those that a YAML file in conf/ or ``--config-dir`` or the
    command line names, and those in ``trust``. No other module is imported.

    ``config``, or some of its groups, comes from the file ``source`` and has no interpolations; see
    `config.saved_config`. ``trust`` holds dotted names of classes that the user allows.

    Raises:
        UserError: if a target is refused; the message names it, its place, and the option that allows it.
    """
    named = trust if isinstance(trust, Sequence) and not isinstance(trust, str) else [trust or ""]
    allowed = {*map(str, named)}
    for keys, target in targets(config):
        group, where = "".join(keys[:1]), ".".join([*keys, "_target_"])
        external = not target.startswith(TRUSTED) or "._" in target
        # the parts of a class of the user may be of any kind
        kinds = (object,) if external else PARTS.get(group, (nn.Module,))
        if len(keys) <= (2 if group in ("callbacks", "logger") else 1):
            kinds = (KINDS[group],) if group in KINDS else ()
        if external and target not in allowed:
            allowed |= named_by_user()
            if target not in allowed:
                raise UserError(
                    f"{source}: {where}={target} comes from this file alone, and would run code of a module "
                    f"that you have not named; if you trust it, add trust={target}"
                )
        try:
            cls: Any = get_class(target)
        except (ImportError, ValueError, HydraException) as error:
            raise UserError(f"{source}: {where}={target}: {str(error).splitlines()[0]}") from error
        if not issubclass(cls, kinds):
            wanted = " or ".join(kind.__name__ for kind in kinds)
            raise UserError(f"{source}: {where}={target} is not a {wanted or 'part of a run'}, so it is not built")


def targets(node: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield each ``_target_`` of a config with the keys that lead to its node."""
    if isinstance(node, dict | list):
        for key, item in node.items() if isinstance(node, dict) else enumerate(node):
            if key == "_target_":
                yield keys, str(item)
            else:
                yield from targets(item, (*keys, str(key)))


def named_by_user() -> set[str]:
    """Return the targets in the YAML files of conf/ and --config-dir, and on the command line."""
    folders: list[str] = [str(CONF)]
    texts: list[str] = []
    if HydraConfig.initialized():
        hydra = HydraConfig.get()
        folders += [source.path for source in hydra.runtime.config_sources if source.schema == "file"]
        typed: Any = OmegaConf.to_container(hydra.overrides.task)  # as typed, since an item may refer to a value
        texts += typed
    files = [file for folder in folders for pattern in ("*.yaml", "*/*.yaml") for file in Path(folder).glob(pattern)]
    texts += [file.read_text(encoding="utf-8", errors="replace") for file in files]
    return {target for text in texts for target in TARGET.findall(text)}
