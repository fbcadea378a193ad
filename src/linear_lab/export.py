"""Export a run to a file that predicts without this package: ``python -m linear_lab.export run=outputs/runs/<id>``."""

from typing import Any

from linear_lab.command import entry


@entry("export")
def main(cfg: Any) -> Any:
    """Export the checkpoint; returns the path of the file."""
    from linear_lab.cli import importing, required

    required(cfg, "run")
    with importing():
        from linear_lab.inference.programs import export

    return export(cfg.run, cfg.checkpoint, cfg.output, cfg.format, cfg.trust)


if __name__ == "__main__":
    main()
