"""Train a run, or a sweep with -m: ``python -m linear_lab.train optimizer=adam optimizer.lr=0.1``."""

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from linear_lab.cli import entry


@entry("train")
def main(cfg: DictConfig) -> float:
    """Train one composed config; returns the metric that a sweep compares."""
    from linear_lab.experiment import train
    from linear_lab.sweep import page, refresh

    hydra_cfg = HydraConfig.get()
    folder, overrides = hydra_cfg.runtime.output_dir, hydra_cfg.overrides.task
    if hydra_cfg.mode != RunMode.MULTIRUN:
        with refresh(folder):
            return train(cfg, folder, overrides)
    with page(hydra_cfg.sweep.dir):
        return train(cfg, folder, overrides)


if __name__ == "__main__":
    main()
