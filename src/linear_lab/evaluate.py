"""Measure a run's checkpoint again: ``python -m linear_lab.evaluate run=outputs/runs/<id>``."""

from omegaconf import DictConfig

from linear_lab.cli import entry, importing, required


@entry("evaluate")
def main(cfg: DictConfig) -> dict[str, float]:
    """Measure the checkpoint; returns the metrics."""
    required(cfg, "run")
    with importing():
        from linear_lab.inference.remeasure import evaluate

    return evaluate(cfg.run, cfg.checkpoint, cfg.accelerator, cfg.trust)


if __name__ == "__main__":
    main()
