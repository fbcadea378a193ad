"""Train a run, or a sweep with -m: ``python -m linear_lab.train optimizer=adam optimizer.lr=0.1``."""

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from linear_lab.cli import entry


@entry("train")
def main(cfg: DictConfig) -> float:
    """Train one composed config; returns the metric that a sweep compares."""
    from linear_lab.experiment import train

    return train(cfg, HydraConfig.get().runtime.output_dir, HydraConfig.get().overrides.task)


if __name__ == "__main__":
    main()
