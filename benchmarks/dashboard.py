"""Measures the cost of logging for the dashboard: the default run as a whole process, compared with ``logger=none``.

Each round starts one process per variant, one after the other, and every other round in the opposite order. The table
shows the median time over the rounds, and its ratio to that of the run without a logger: the median, the smallest and
the largest over the rounds.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hardware import OVERRIDES
from rich.console import Console
from rich.table import Table

ROUNDS = 7
VARIANTS = {"logger=none": ("logger=none",), "without pictures": ("logger.tensorboard.pictures=false",), "default": ()}


def timed(folder: str, *overrides: str) -> float:
    """Train in a new process; return the seconds from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "linear_lab.train", f"output_root={folder}", *OVERRIDES, *overrides]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    seconds: dict[str, list[float]] = {name: [] for name in VARIANTS}
    size: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for number in range(-1, ROUNDS):  # round -1 is a warm-up
            variants = list(VARIANTS.items())
            for name, overrides in variants if number % 2 else reversed(variants):
                folder = Path(scratch, f"{number} {name}")
                elapsed = timed(str(folder), *overrides)
                size[name] = sum(path.stat().st_size for path in folder.glob("runs/*/events*"))
                seconds[name] += [elapsed] if number >= 0 else []
    titles = ("default run, whole process", "seconds", "ratio to logger=none", "event files")
    table = Table(*titles, box=None, header_style="dim")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["logger=none"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{statistics.median(values):.1f}", spread, f"{size[name] / 1000:.0f} KB")
    Console().print(table)


if __name__ == "__main__":
    main()
