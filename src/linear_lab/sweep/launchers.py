"""Hydra's launcher in this process, with Hydra composing once for each choice of groups and not for each job."""

import re
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra.core.config_loader import ConfigLoader
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

from linear_lab.sweep.composer import Patcher


class LocalLauncher(BasicLauncher):
    """Trains one job after the other: as Hydra's own launcher, which composes each job's config anew, 0.2 s each."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands over."""
        loader: Any = PatchingLoader(hydra_context.config_loader, config)
        context = HydraContext(config_loader=loader, callbacks=hydra_context.callbacks)
        super().setup(hydra_context=context, task_function=task_function, config=config)


class PatchingLoader:
    """Composes the config of a job with Hydra's own node, as `ConfigLoader.load_sweep_config`.

    Args:
        loader: Hydra's.
        config: of the command.
    """

    def __init__(self, loader: ConfigLoader, config: DictConfig) -> None:
        self.patcher = Patcher(lambda lines: loader.load_sweep_config(config, lines), loader.get_group_options)

    def load_sweep_config(self, config: DictConfig, overrides: list[str]) -> DictConfig:
        """Compose; what the node says of the job's overrides is the job's."""
        shape, values = self.patcher.split(overrides)
        cfg = self.patcher.config(shape, [(patch.key, patch.value) for patch in values])
        patches = [self.patcher.parse(line) for line in overrides]
        task = [patch for patch in patches if not patch.key.startswith(("hydra.", "hydra/"))]
        with open_dict(cfg):
            job, typed = cfg.hydra.job, cfg.hydra.overrides
            typed.task = [patch.line for patch in task]
            typed.hydra = [*config.hydra.overrides.hydra, *(patch.line for patch in patches if patch not in task)]
            how = job.config.override_dirname
            named = sorted(patch.line for patch in task if patch.key not in how.exclude_keys)
            job.override_dirname = re.sub("=", lambda _: how.kv_sep, how.item_sep.join(named))
        return cfg
