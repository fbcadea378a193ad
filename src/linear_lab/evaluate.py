"""Measure a run's checkpoint again: ``python -m linear_lab.evaluate run=outputs/runs/<id>``."""

from omegaconf import DictConfig, OmegaConf

from linear_lab import UserError
from linear_lab.cli import entry


@entry("evaluate")
def main(cfg: DictConfig) -> dict[str, float]:
    """Measure the checkpoint; returns the metrics."""
    if OmegaConf.is_missing(cfg, "run"):
        raise UserError("run=<folder> is missing; name a run folder, as in run=outputs/runs/<id>")
    from linear_lab.experiment import evaluate

    return evaluate(cfg.run, cfg.checkpoint, cfg.accelerator)


if __name__ == "__main__":
    main()
