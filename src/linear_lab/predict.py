"""Predict with a trained run: ``python -m linear_lab.predict run=outputs/runs/<id> x=[5,6]``."""

from typing import Any

from linear_lab.command import entry


@entry("predict")
def main(cfg: Any) -> Any:
    """Predict for rows or a file; returns the path of the file that was written, if any."""
    from linear_lab.cli import importing, required

    required(cfg, "run")
    with importing():
        from linear_lab.inference.rows import predict

    reading = {key: cfg[key] for key in ("separator", "encoding", "decimal")}
    return predict(cfg.run, cfg.checkpoint, cfg.x, cfg.input, cfg.output, cfg.missing, cfg.trust, **reading)


if __name__ == "__main__":
    main()
