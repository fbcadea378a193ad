"""Train a run, or a sweep with -m: ``python -m linear_lab.train optimizer=adam optimizer.lr=0.1``."""

from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError
from linear_lab.cli import entry, importing


@entry("train")
def main(cfg: DictConfig) -> float | None:
    """Train one composed config, or a job of a sweep; returns the metric that a sweep compares."""
    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        with importing():
            from linear_lab.sweep.job import train_job

        return train_job(cfg)
    with importing():
        from linear_lab.fitting.run import train
        from linear_lab.sweep.page import refresh

    typed: Any = OmegaConf.to_container(hydra.overrides.task)  # as typed: an item that refers to a value stays so
    steering = [item for item in typed if item.partition("=")[0] in ("name", "overwrite", "fail_fast")]
    if steering and not cfg.resume:
        raise UserError(f"{', '.join(steering)}: is for sweeps; add -m, or leave it out")
    with refresh(hydra.runtime.output_dir, cfg.trust):
        return train(cfg, hydra.runtime.output_dir, typed)


if __name__ == "__main__":
    main()
