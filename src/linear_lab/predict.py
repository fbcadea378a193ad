"""Predict with a run: ``python -m linear_lab.predict run=outputs/runs/<id> x=[5,6]``."""

from typing import Any

from omegaconf import DictConfig

from linear_lab.cli import entry, importing, required


@entry("predict")
def main(cfg: DictConfig) -> Any:
    """Predict rows or a file; returns the file that was written."""
    required(cfg, "run")
    with importing():
        from linear_lab.inference.rows import predict

    reading = {key: cfg[key] for key in ("separator", "encoding", "decimal")}
    return predict(cfg.run, cfg.checkpoint, cfg.x, cfg.input, cfg.output, cfg.missing, cfg.trust, **reading)


if __name__ == "__main__":
    main()
