"""A sweep's leaderboard: its jobs best first, and their means over seeds.

Any process may write it at any time: it is made of the plan and the jobs' records alone.
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

__all__ = ["Ranking", "commands", "is_sweep", "markdown", "read", "show", "table", "write", "write_sparingly"]

TABLE, SEEDS, TEXT = "leaderboard.csv", "leaderboard_seeds.csv", "leaderboard.md"
LOCK = ".leaderboard.lock"
TOP = 20  # rows on the terminal
MOST = 1000  # rows of leaderboard.md
LONGEST = 32  # characters of a value on the terminal
SHARE = 0.05  # of the time that may go into leaderboard, page, or the line on the terminal while jobs run
NUMBERS = ("mean", "standard_deviation", "best", "worst")  # of a group
EXCESS = pl.when(pl.col("status") == "completed").then("excess_loss").alias("excess_loss")

Rows = list[list[str]]

log = logging.getLogger(__name__)
_written: dict[Path, tuple[float, float]] = {}  # when it was written last, and how long that took


def is_sweep(folder: Path) -> bool:
    """Whether a folder is that of a sweep, even if its plan is lost."""
    if any((folder / name).exists() for name in (PLAN, SETTINGS, RESULTS, "multirun.yaml")):
        return True
    return bool(read_jobs(folder)[0]["typed"].is_not_null().any())


def write(folder: str | Path, metric: str | None = None, mode: str | None = None, *, strict: bool = False) -> Ranking:
    """Write leaderboard.csv, leaderboard.md and, where there are seeds, leaderboard_seeds.csv; arguments as `read`.

    Each file is replaced atomically. Of several processes the one that writes last has read last. A disk that is full
    or not writable costs a warning only, unless ``strict``: the leaderboard can be made again from the records.
    """
    folder, started = Path(folder), time.monotonic()
    board = read(folder, metric, mode)
    try:
        with locked(folder / LOCK):
            board = read(folder, metric, mode)  # again: another process may have held the lock meanwhile
            texts = {TABLE: table(board), TEXT: markdown(board, MOST)}
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


def write_sparingly(folder: Path) -> None:
    """Write between the jobs, only as often as `SHARE` of this process's time allows."""
    if is_due(*_written.get(folder, (0.0, 0.0))):
        write(folder)


def is_due(ended: float, seconds: float) -> bool:
    """Whether what last took so many seconds, until ``ended``, may be done again within `SHARE` of the time."""
    return time.monotonic() - ended >= seconds / SHARE


def table(board: Ranking) -> str:
    """Write all jobs as CSV, with an empty cell for a missing value."""
    keys = [KEYS + key for key in board.differing]
    rows = board.ranked.select("rank", "name", *keys, "value", EXCESS, "steps", "status", "seconds", "error")
    columns = ["rank", "job", *board.differing, board.metric, "excess_loss", "steps", "status", "seconds", "error"]
    return as_csv(rows, columns)


def seeds_table(board: Ranking) -> str:
    """Write the groups over seeds as CSV."""
    keys = [key for key in board.differing if key != "seed"]
    rows = board.groups.select("rank", *(KEYS + key for key in keys), "n", "lost", *NUMBERS)
    return as_csv(rows, ["rank", *keys, "n", "diverged_or_failed", *NUMBERS])


def _short_keys(keys: Sequence[str]) -> list[str]:
    """Remove ``optimizer.`` where no two columns get one name.

    >>> _short_keys(["optimizer", "optimizer.lr", "optimizer.gamma", "gamma"])
    ['optimizer', 'lr', 'optimizer.gamma', 'gamma']
    """
    short_keys = [key.removeprefix("optimizer.") for key in keys]
    return [name if short_keys.count(name) == 1 else key for key, name in zip(keys, short_keys, strict=True)]


def _job_rows(board: Ranking, limit: int) -> Rows:
    """Make the table of jobs for people, headings first."""
    keys = [KEYS + key for key in board.differing]
    seconds = pl.col("seconds").map_elements("{:.1f}".format, pl.String)
    rows = board.ranked.head(limit).select("rank", *keys, "value", EXCESS, "steps", "status", seconds, "name")
    columns = [*_short_keys(board.differing), board.metric, "excess loss", "steps", "status", "seconds", "job"]
    return [["rank", *columns], *([_cell(value) for value in row] for row in rows.iter_rows())]


def _seed_rows(board: Ranking, limit: int) -> Rows:
    """Make the table over seeds for people, headings first."""
    keys = [key for key in board.differing if key != "seed"]
    counts = ["n", "lost"] if (board.groups["lost"] > 0).any() else ["n"]
    rows = board.groups.head(limit).select("rank", *(KEYS + key for key in keys), *counts, *NUMBERS)
    columns = ["rank", *_short_keys(keys), *counts, *(name.replace("_", " ") for name in NUMBERS)]
    return [columns, *([_cell(value) for value in row] for row in rows.iter_rows())]


def _cell(value: Any) -> str:
    """Show a value, without characters that would control a terminal or break a line."""
    if isinstance(value, str):
        return "".join(c if c.isprintable() else "?" for c in value) or "-"
    return str(value) if isinstance(value, int) else number(value)


def _caption(board: Ranking) -> str:
    """Say how far the sweep is: ``6 jobs: 4 completed, 1 diverged, 1 waiting``."""
    counts = ", ".join(f"{count} {status}" for status, count in board.counts.items())
    return f"{len(board.jobs)} job{'s' if len(board.jobs) != 1 else ''}: {counts}" if len(board.jobs) else "no jobs"


def markdown(board: Ranking, limit: int) -> str:
    """Write both tables, of ``limit`` rows at most, and the command that trains the winner again, as Markdown."""
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
    """Print both tables, of ``top`` rows at most, and how far the sweep is."""
    rows = _job_rows(board, top)
    hidden = [len(rows[0]) - 4] + [len(rows[0]) - 1] * bool(board.differing)  # steps, and names, which repeat the keys
    hidden += [len(rows[0]) - 5] * all(row[-5] == "-" for row in rows[1:])  # the excess loss
    _show_rows(screen, [[cell for at, cell in enumerate(row) if at not in hidden] for row in rows])
    _show_rest(screen, len(board.jobs) - top, board.folder / TABLE)
    if len(board.groups):
        screen.print(f"\n{board.metric} over seeds", style="dim")
        _show_rows(screen, _seed_rows(board, top))
        _show_rest(screen, len(board.groups) - top, board.folder / SEEDS)
    screen.print("\n" + "\n".join([_caption(board), *board.notes]), soft_wrap=True)


def commands(board: Ranking) -> dict[str, str]:
    """Name what to do next with a leaderboard."""
    return {"train again": _train_again(board), "leaderboard": quoted(str(short(board.folder / TEXT)))}


def _train_again(board: Ranking) -> str:
    if board.best is None:
        return "metric=null ranks none" if board.metric == NO_METRIC else "no job was completed, so none has won"
    return board.best.command or f"as {board.best.folder / '.hydra'} says"


def _show_rows(screen: Console, rows: Rows) -> None:
    """Print a table; on a terminal that is too narrow for it one paragraph per row."""
    columns, *rows = [[cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}..." for cell in row] for row in rows]
    width = sum(max(map(cell_len, column)) + 2 for column in zip(columns, *rows, strict=True)) - 2
    if screen.width >= width or not screen.is_terminal:
        show_table(screen, columns, rows)
        return
    for row in rows:
        screen.print(", ".join(f"{name} {cell}" for name, cell in zip(columns, row, strict=True) if cell != "-"))


def _show_rest(screen: Console, count: int, file: Path) -> None:
    if count > 0:
        screen.print(f"... {count} more in {short(file)}", soft_wrap=True)
