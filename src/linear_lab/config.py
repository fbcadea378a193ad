"""A composed config, before anything is built from it. Imports no torch."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf


def as_dict(cfg: DictConfig) -> dict[str, Any]:
    """Return a config as plain containers, with its interpolations resolved."""
    container: Any = OmegaConf.to_container(cfg, resolve=True)
    return {str(key): value for key, value in container.items()}


def absolute(path: Any, folder: str | Path) -> Any:
    """Return a path seen from ``folder`` as an absolute one; None stays."""
    return str(Path(folder, Path(str(path)).expanduser()).absolute()) if path else path


def make_paths_absolute(cfg: DictConfig, folder: str | Path) -> None:
    """Let a config find its data file from any folder: relative paths start at ``folder``."""
    if cfg.data.get("path"):
        cfg.data.path = absolute(cfg.data.path, folder)
