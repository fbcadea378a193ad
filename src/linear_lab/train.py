"""Train a run, or a sweep with -m: ``python -m linear_lab.train optimizer=adam optimizer.lr=0.1``."""

from typing import Any

from linear_lab import UserError
from linear_lab.command import entry


@entry("train")
def main(cfg: Any) -> float | None:
    """Train one run, or one job of a sweep; returns the final metric, by which a sweep compares."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import OmegaConf

    from linear_lab.cli import importing
    from linear_lab.config import new_run
    from linear_lab.sweep.page import refresh
    from linear_lab.terminal import layout

    hydra = HydraConfig.get()
    if hydra.mode == RunMode.MULTIRUN:
        with importing():
            from linear_lab.sweep.job import train_job

        return train_job(cfg)
    typed: Any = OmegaConf.to_container(hydra.overrides.task)  # as typed: references to other values are not resolved
    steering = [item for item in typed if item.partition("=")[0] in ("name", "overwrite", "fail_fast")]
    if steering and not cfg.resume:
        raise UserError(f"{', '.join(steering)}: only for sweeps; add -m, as make sweep does, or leave it out")
    if cfg.resume:
        with importing():
            from linear_lab.fitting.run import train

        with refresh(hydra.runtime.output_dir, cfg.trust):
            return train(cfg, hydra.runtime.output_dir, typed)
    with new_run(cfg, typed) as run:
        with importing():
            from linear_lab.fitting.run import train_in

        with refresh(run.path):
            return train_in(run, cfg, typed, layout.screen())


if __name__ == "__main__":
    main()
