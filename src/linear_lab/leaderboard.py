"""Rank the jobs of a sweep again: ``python -m linear_lab.leaderboard sweep=outputs/sweeps/<name>``."""

from pathlib import Path
from typing import Any

from linear_lab import UserError
from linear_lab.command import entry


@entry("leaderboard", renamed={"sweep": "folder"})
def main(cfg: Any) -> None:
    """Write the leaderboard and show it, whether the jobs still run, have ended, or were killed."""
    from omegaconf import OmegaConf

    from linear_lab.sweep import board, page
    from linear_lab.terminal import layout

    example = "name a sweep's folder, as in sweep=outputs/sweeps/<name>"
    if OmegaConf.is_missing(cfg, "folder") or cfg.folder is None:
        raise UserError(f"sweep=<folder> is missing; {example}")
    folder = Path(str(cfg.folder)).expanduser()
    if not folder.is_dir():
        raise UserError(f"sweep={cfg.folder}: there is no such folder; {example}")
    if not board.is_sweep(folder):
        raise UserError(f"sweep={cfg.folder}: this folder has no plan, so it is no sweep; {example}")
    if type(cfg.top) is not int or cfg.top < 1:
        raise UserError(f"top={cfg.top}: must be a whole number from 1: the rows of the table")
    leaderboard, failure = board.read(folder, cfg.metric, cfg.mode), None  # refuse mistakes before writing
    try:
        leaderboard = board.write(folder, cfg.metric, cfg.mode, strict=True)
    except UserError as error:  # the leaderboard is shown nevertheless
        failure = error
    if cfg.page and not failure:
        page.write_page(folder, trust=cfg.trust)
    screen = layout.screen()
    board.show(screen, leaderboard, cfg.top)
    layout.show_commands(screen, board.commands(leaderboard))
    if failure:
        raise failure


if __name__ == "__main__":
    main()
