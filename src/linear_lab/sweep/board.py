"""The leaderboard of a sweep: its jobs, best first, and their means over seeds.

It depends on the plan, the records and the results of stacks alone, so any process can write it at any time.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
from rich.cells import cell_len
from rich.console import Console

from linear_lab import UserError
from linear_lab.runs import atomic
from linear_lab.spreadsheets import as_csv
from linear_lab.sweep import NO_METRIC, PLAN, SETTINGS
from linear_lab.sweep.inventory import KEYS, read_jobs
from linear_lab.sweep.ranking import Ranking, read
from linear_lab.sweep.results import RESULTS, locked
from linear_lab.terminal.layout import markdown_table, number, quoted, short, show_table
from linear_lab.text import printable

__all__ = ["Ranking", "commands", "is_sweep", "markdown", "read", "show", "table", "write", "write_if_due"]

TABLE, SEEDS, TEXT = "leaderboard.csv", "leaderboard_seeds.csv", "leaderboard.md"
LOCK = ".leaderboard.lock"
TOP = 20  # rows on the terminal
MAX_ROWS = 1000  # rows of leaderboard.md
MAX_CELL = 32  # characters per cell on the terminal
SHARE = 0.05  # while jobs run, the largest fraction of the time for the leaderboard, and for the page or the progress
NUMBERS = ("mean", "standard_deviation", "best", "worst")  # columns of a group of seeds
EXCESS = pl.when(pl.col("status") == "completed").then("excess_loss").alias("excess_loss")

Rows = list[list[str]]

log = logging.getLogger(__name__)
_written: dict[Path, tuple[float, float]] = {}  # by folder: the time of the last write, and its seconds


def is_sweep(folder: Path) -> bool:
    """Return whether a folder is that of a sweep, even if its plan is lost."""
    if any((folder / name).exists() for name in (PLAN, SETTINGS, RESULTS, "multirun.yaml")):
        return True
    return bool(read_jobs(folder)[0]["typed"].is_not_null().any())


def write(folder: str | Path, metric: str | None = None, mode: str | None = None, *, strict: bool = False) -> Ranking:
    """Write leaderboard.csv, leaderboard.md and, if jobs differ in their seeds, leaderboard_seeds.csv.

    ``metric`` and ``mode`` are those of `read`. Jobs are read and files replaced under one lock, so the last process to
    write has the newest results. If the disk is full or not writable, this is a warning, or a UserError if ``strict``.
    """
    folder, started = Path(folder), time.monotonic()
    board = read(folder, metric, mode)
    try:
        with locked(folder / LOCK):
            board = read(folder, metric, mode)  # read again: results may have changed while waiting for the lock
            texts = {TABLE: table(board), TEXT: markdown(board, MAX_ROWS)}
            if len(board.groups):
                texts[SEEDS] = seeds_table(board)
            else:
                (folder / SEEDS).unlink(missing_ok=True)
            for name, text in texts.items():
                atomic.replace(folder / name, text.encode(errors="surrogateescape"))
    except (OSError, UserError) as error:
        if strict:
            raise UserError(f"the leaderboard of {folder} could not be written: {error}") from error
        log.warning("the leaderboard of %s could not be written: %s", folder, error)
    _written[folder] = time.monotonic(), time.monotonic() - started
    return board


def write_if_due(folder: Path) -> None:
    """Write the leaderboard between two jobs, if it takes no more than `SHARE` of this process's time."""
    if is_due(*_written.get(folder, (0.0, 0.0))):
        write(folder)


def is_due(ended: float, seconds: float) -> bool:
    """Return whether a task that took ``seconds``, and last ended at ``ended``, can be repeated within `SHARE`."""
    return time.monotonic() - ended >= seconds / SHARE


def table(board: Ranking) -> str:
    """Return all jobs as CSV, with an empty cell for each missing value."""
    keys = [KEYS + key for key in board.differing]
    rows = board.ranked.select("rank", "name", *keys, "value", EXCESS, "steps", "status", "seconds", "error")
    columns = ["rank", "job", *board.differing, board.metric, "excess_loss", "steps", "status", "seconds", "error"]
    return as_csv(rows, columns)


def seeds_table(board: Ranking) -> str:
    """Return the means over seeds as CSV, with one row per group."""
    keys = [key for key in board.differing if key != "seed"]
    rows = board.groups.select("rank", *(KEYS + key for key in keys), "n", "lost", *NUMBERS)
    return as_csv(rows, ["rank", *keys, "n", "diverged_or_failed", *NUMBERS])


def _short_keys(keys: Sequence[str]) -> list[str]:
    """Remove the prefix ``optimizer.`` from keys, unless two keys would then be equal.

    >>> _short_keys(["optimizer", "optimizer.lr", "optimizer.gamma", "gamma"])
    ['optimizer', 'lr', 'optimizer.gamma', 'gamma']
    """
    short_keys = [key.removeprefix("optimizer.") for key in keys]
    return [name if short_keys.count(name) == 1 else key for key, name in zip(keys, short_keys, strict=True)]


def _job_rows(board: Ranking, limit: int) -> Rows:
    """Return the table of jobs as text, headings first."""
    keys = [KEYS + key for key in board.differing]
    seconds = pl.col("seconds").map_elements("{:.1f}".format, pl.String)
    rows = board.ranked.head(limit).select("rank", *keys, "value", EXCESS, "steps", "status", seconds, "name")
    columns = [*_short_keys(board.differing), board.metric, "excess loss", "steps", "status", "seconds", "job"]
    return [["rank", *columns], *([_cell(value) for value in row] for row in rows.iter_rows())]


def _seed_rows(board: Ranking, limit: int) -> Rows:
    """Return the table of means over seeds as text, headings first."""
    keys = [key for key in board.differing if key != "seed"]
    counts = ["n", "lost"] if (board.groups["lost"] > 0).any() else ["n"]
    rows = board.groups.head(limit).select("rank", *(KEYS + key for key in keys), *counts, *NUMBERS)
    columns = ["rank", *_short_keys(keys), *counts, *(name.replace("_", " ") for name in NUMBERS)]
    return [columns, *([_cell(value) for value in row] for row in rows.iter_rows())]


def _cell(value: Any) -> str:
    """Return the text of a value, without control characters and line breaks."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value) or "-"
    return str(value) if isinstance(value, int) else number(value)


def _caption(board: Ranking) -> str:
    """Return the number of jobs by status, such as ``6 jobs: 4 completed, 1 diverged, 1 waiting``."""
    counts = ", ".join(f"{count} {status}" for status, count in board.counts.items())
    return f"{len(board.jobs)} job{'s' if len(board.jobs) != 1 else ''}: {counts}" if len(board.jobs) else "no jobs"


def markdown(board: Ranking, limit: int) -> str:
    """Return both tables, of at most ``limit`` rows, and the command that trains the best job again, as Markdown."""
    better = "higher" if board.mode == "max" else "lower"
    columns, *rows = _job_rows(board, limit)
    parts = [f"{_caption(board)}; a {better} {board.metric} is better", markdown_table(columns, rows)]
    if len(board.jobs) > limit:
        parts.append(f"{len(board.jobs) - limit} more jobs are not shown.")
    if len(board.groups):
        columns, *rows = _seed_rows(board, limit)
        parts += [f"{board.metric} over seeds", markdown_table(columns, rows)]
    parts += board.notes
    command = board.best.command if board.best else None
    parts.append(f"Train the best again:\n\n```sh\n{command}\n```" if command else _train_again(board))
    return printable("\n\n".join(parts) + "\n")


def show(screen: Console, board: Ranking, top: int = TOP) -> None:
    """Print both tables, of at most ``top`` rows, and the number of jobs by status."""
    rows = _job_rows(board, top)
    hidden = [len(rows[0]) - 4] + [len(rows[0]) - 1] * bool(board.differing)  # the steps; the names, which repeat keys
    hidden += [len(rows[0]) - 5] * all(row[-5] == "-" for row in rows[1:])  # the excess loss, if no job has one
    _show_rows(screen, [[cell for at, cell in enumerate(row) if at not in hidden] for row in rows])
    _show_rest(screen, len(board.jobs) - top, board.folder / TABLE)
    if len(board.groups):
        screen.print(f"\n{board.metric} over seeds", style="dim")
        _show_rows(screen, _seed_rows(board, top))
        _show_rest(screen, len(board.groups) - top, board.folder / SEEDS)
    screen.print("\n" + "\n".join([_caption(board), *board.notes]), soft_wrap=True)


def commands(board: Ranking) -> dict[str, str]:
    """Return the commands that are suggested below a leaderboard, by label."""
    return {"train again": _train_again(board), "leaderboard": quoted(str(short(board.folder / TEXT)))}


def _train_again(board: Ranking) -> str:
    if board.best is None:
        return "no best job, since metric=null" if board.metric == NO_METRIC else "no job was completed"
    return board.best.command or f"with the overrides in {board.best.folder / '.hydra'}"


def _show_rows(screen: Console, rows: Rows) -> None:
    """Print a table, or, on a terminal that is too narrow for it, one paragraph per row."""
    columns, *rows = [[cell if len(cell) <= MAX_CELL else f"{cell[:MAX_CELL]}..." for cell in row] for row in rows]
    width = sum(max(map(cell_len, column)) + 2 for column in zip(columns, *rows, strict=True)) - 2
    if screen.width >= width or not screen.is_terminal:
        show_table(screen, columns, rows)
        return
    for row in rows:
        screen.print(", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell != "-"))


def _show_rest(screen: Console, count: int, file: Path) -> None:
    if count > 0:
        screen.print(f"... {count} more in {short(file)}", soft_wrap=True)
