"""Write a run as a file that predicts by itself: ``python -m linear_lab.export run=outputs/runs/<id>``."""

from typing import Any

from omegaconf import DictConfig

from linear_lab.cli import entry, importing, required


@entry("export")
def main(cfg: DictConfig) -> Any:
    """Export the checkpoint; returns the file."""
    required(cfg, "run")
    with importing():
        from linear_lab.inference.programs import export

    return export(cfg.run, cfg.checkpoint, cfg.output, cfg.format, cfg.trust)


if __name__ == "__main__":
    main()
