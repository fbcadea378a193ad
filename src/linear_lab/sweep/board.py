"""A sweep's leaderboard: its jobs best first, and what they found over seeds.

Any process may write it at any time: it is made of the plan and the jobs' records alone.
"""

import fcntl
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.cells import cell_len
from rich.console import Console

from linear_lab.sweep.inventory import KEYS, finite, read_jobs
from linear_lab.sweep.plan import PLAN, SETTINGS
from linear_lab.sweep.ranking import Board, read
from linear_lab.sweep.results import RESULTS
from linear_lab.terminal.layout import markdown_table, number, quoted, short, show_table

if TYPE_CHECKING:
    import polars as pl

__all__ = ["Board", "commands", "is_sweep", "markdown", "read", "show", "table", "write", "write_sparingly"]

TABLE, SEEDS, TEXT = "leaderboard.csv", "leaderboard_seeds.csv", "leaderboard.md"
LOCK = ".leaderboard.lock"
TOP = 20  # rows on the terminal
MOST = 1000  # rows of leaderboard.md
LONGEST = 32  # characters of a value there
SHARE = 0.05  # of a process's time that may go into the leaderboard while jobs run

log = logging.getLogger(__name__)
_written: dict[Path, tuple[float, float]] = {}  # when it was written last, and how long that took


def is_sweep(folder: Path) -> bool:
    """Whether a folder is one of a sweep, be it with its plan lost."""
    if any((folder / name).exists() for name in (PLAN, SETTINGS, RESULTS, "multirun.yaml")):
        return True
    return bool(read_jobs(folder)[0]["typed"].is_not_null().any())


def write(folder: str | Path, metric: str | None = None, mode: str | None = None) -> Board:
    """Write leaderboard.csv, leaderboard.md and, where there are seeds, leaderboard_seeds.csv; arguments as `read`.

    Each file is replaced atomically. Of several processes the one that writes last has read last. A disk that does not
    let itself be written costs a warning: the records are what counts.
    """
    folder, board, started = Path(folder), None, time.monotonic()
    try:
        with (folder / LOCK).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            board = read(folder, metric, mode)
            replace(folder / TABLE, table(board))
            replace(folder / TEXT, markdown(board, MOST))
            if len(board.groups):
                replace(folder / SEEDS, seeds_table(board))
            else:
                (folder / SEEDS).unlink(missing_ok=True)
    except OSError as error:
        log.warning("the leaderboard of %s could not be written: %s", folder, error.strerror or error)
    _written[folder] = time.monotonic(), time.monotonic() - started
    return board or read(folder, metric, mode)


def write_sparingly(folder: Path) -> None:
    """Write as `write`, but only as often as `SHARE` of this process's time allows: for between the jobs."""
    ended, took = _written.get(folder, (0.0, 0.0))
    if time.monotonic() - ended >= took / SHARE:
        write(folder)


def replace(path: Path, text: str) -> None:
    """Replace a file atomically, within the lock; not on disk at once, since the records can make it again."""
    part = path.with_name(f".{path.name}.part")
    try:
        part.write_text(text, encoding="utf-8", errors="surrogateescape")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def table(board: Board) -> str:
    """Write all jobs as CSV; what is not there is empty."""
    keys = [KEYS + key for key in board.differing]
    rows = board.ranked.select("rank", "name", *keys, "value", excess(), "steps", "status", "seconds", "error")
    names = ["rank", "job", *board.differing, board.metric, "excess_loss", "steps", "status", "seconds", "error"]
    return as_csv(names, rows)


def seeds_table(board: Board) -> str:
    """Write the groups over seeds as CSV."""
    keys = [key for key in board.differing if key != "seed"]
    numbers = ["mean", "standard_deviation", "best", "worst"]
    rows = board.groups.select("rank", *(KEYS + key for key in keys), "n", "lost", *numbers)
    return as_csv(["rank", *keys, "n", "diverged_or_failed", *numbers], rows)


def as_csv(headings: Sequence[str], rows: "pl.DataFrame") -> str:
    """Write rows with all their digits; a key that was typed may be called as another column is."""
    import polars as pl

    first = pl.DataFrame([headings], orient="row")
    return first.write_csv(include_header=False) + rows.write_csv(include_header=False)


def excess() -> "pl.Expr":
    """The final model's excess loss, if the job was completed."""
    import polars as pl

    return pl.when(pl.col("status") == "completed").then("excess_loss").alias("excess_loss")


def headings(keys: Sequence[str]) -> list[str]:
    """Leave ``optimizer.`` out where no two columns get one name.

    >>> headings(["optimizer", "optimizer.lr", "optimizer.gamma", "gamma"])
    ['optimizer', 'lr', 'optimizer.gamma', 'gamma']
    """
    brief = [key.removeprefix("optimizer.") for key in keys]
    return [name if brief.count(name) == 1 else key for key, name in zip(keys, brief, strict=True)]


def job_rows(board: Board, limit: int) -> list[list[str]]:
    """Make the rows of people's table of jobs, headings first."""
    rows = [["rank", *headings(board.differing), board.metric, "excess loss", "steps", "status", "seconds", "job"]]
    for job in board.ranked.head(limit).with_columns(excess()).iter_rows(named=True):
        steps, seconds = job["steps"], finite(job["seconds"])
        rows.append([
            str(job["rank"] or "-"), *(printable(job[KEYS + key] or "-") for key in board.differing),
            number(job["value"]), number(job["excess_loss"]), "-" if steps is None else str(steps),
            job["status"], "-" if seconds is None else f"{seconds:.1f}", job["name"],
        ])  # fmt: skip
    return rows


def seed_rows(board: Board, limit: int) -> list[list[str]]:
    """Make the rows of people's table over seeds, headings first."""
    keys = [key for key in board.differing if key != "seed"]
    lost = bool((board.groups["lost"] > 0).any())
    rows = [["rank", *headings(keys), "n", *["lost"] * lost, "mean", "standard deviation", "best", "worst"]]
    for group in board.groups.head(limit).iter_rows(named=True):
        values = [printable(group[KEYS + key] or "-") for key in keys]
        counts = [str(group["n"]), *[str(group["lost"])] * lost]
        numbers = [number(group[name]) for name in ("mean", "standard_deviation", "best", "worst")]
        rows.append([str(group["rank"] or "-"), *values, *counts, *numbers])
    return rows


def printable(text: str) -> str:
    """Replace what would steer a terminal or break a line."""
    return text if text.isprintable() else "".join(c if c.isprintable() else "?" for c in text)


def caption(board: Board) -> str:
    """Say how far the sweep is: ``6 jobs: 4 completed, 1 diverged, 1 waiting``."""
    counts = ", ".join(f"{count} {status}" for status, count in board.counts.items())
    return f"{len(board.jobs)} job{'s' if len(board.jobs) != 1 else ''}: {counts}" if len(board.jobs) else "no jobs"


def verdict(board: Board) -> dict[str, str]:
    """Give the command that trains the winner again, or say why there is none."""
    if board.best is None:
        return {"train again": "no job was completed, so none has won"}
    return {"train again": board.best.command or f"as {board.best.folder / '.hydra'} says"}


def markdown(board: Board, rows: int) -> str:
    """Write both tables, of so many rows each, and the command that trains the winner again, as Markdown."""
    better = "higher" if board.mode == "max" else "lower"
    parts = [f"{caption(board)}; a {better} {board.metric} is better", as_markdown(job_rows(board, rows))]
    if len(board.jobs) > rows:
        parts.append(f"{len(board.jobs) - rows} more jobs are not shown.")
    if len(board.groups):
        parts += [f"{board.metric} over seeds", as_markdown(seed_rows(board, rows))]
    parts += board.notes
    if board.best and board.best.command:
        parts.append(f"Train the best again:\n\n```sh\n{board.best.command}\n```")
    else:
        parts += verdict(board).values()
    return "\n\n".join(parts) + "\n"


def as_markdown(rows: list[list[str]]) -> str:
    """Write a table whose first row are its headings."""
    return markdown_table(rows[0], rows[1:])


def show(screen: Console, board: Board, top: int = TOP) -> None:
    """Print both tables, of ``top`` rows at most, and how far the sweep is."""
    rows = job_rows(board, top)
    hidden = [len(rows[0]) - 4] + [len(rows[0]) - 1] * bool(board.differing)  # steps, and names that say the same again
    show_rows(screen, [[cell for at, cell in enumerate(row) if at not in hidden] for row in rows])
    show_left(screen, len(board.jobs) - top, board.folder / TABLE)
    if len(board.groups):
        screen.print(f"\n{board.metric} over seeds", style="dim")
        show_rows(screen, seed_rows(board, top))
        show_left(screen, len(board.groups) - top, board.folder / SEEDS)
    screen.print("\n" + "\n".join([caption(board), *board.notes]), soft_wrap=True)


def commands(board: Board) -> dict[str, str]:
    """Name what to do next with a leaderboard."""
    return verdict(board) | {"leaderboard": quoted(str(short(board.folder / TEXT)))}


def show_rows(screen: Console, rows: list[list[str]]) -> None:
    """Print a table; on a terminal that is too narrow for it a paragraph a row."""
    cut = [[cell if len(cell) <= LONGEST else f"{cell[:LONGEST]}..." for cell in row] for row in rows]
    width = sum(max(map(cell_len, column)) + 2 for column in zip(*cut, strict=True)) - 2
    if screen.width >= width or not screen.is_terminal:
        show_table(screen, cut[0], cut[1:])
        return
    for row in cut[1:]:
        screen.print(", ".join(f"{name} {cell}" for name, cell in zip(cut[0], row, strict=True) if cell != "-"))


def show_left(screen: Console, left: int, file: Path) -> None:
    """Say where the rows are that were not shown."""
    if left > 0:
        screen.print(f"... {left} more in {short(file)}", soft_wrap=True)
