"""Measure a checkpoint of a run again: ``python -m linear_lab.evaluate run=outputs/runs/<id>``."""

from typing import Any

from linear_lab.command import entry


@entry("evaluate")
def main(cfg: Any) -> dict[str, float]:
    """Measure the checkpoint; returns the metrics."""
    from linear_lab.cli import importing, required

    required(cfg, "run")
    with importing():
        from linear_lab.inference.remeasure import evaluate

    return evaluate(cfg.run, cfg.checkpoint, cfg.accelerator, cfg.trust)


if __name__ == "__main__":
    main()
