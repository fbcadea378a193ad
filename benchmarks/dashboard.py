"""What the dashboard costs: the default run as a user starts it, with all that it logs and with `logger=none`.

Each round starts both as processes, one after the other, in turns which goes first; the table shows the median over
rounds, and the ratio to the run without a logger with the smallest and largest ratio of a round.
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
WAYS = {"logger=none": ("logger=none",), "without pictures": ("logger.tensorboard.pictures=false",), "default": ()}


def timed(folder: str, *overrides: str) -> float:
    """Train in a process of its own; seconds from its start to its end."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "linear_lab.train", f"output_root={folder}", *OVERRIDES, *overrides]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print the table."""
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    size: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(-1, ROUNDS):  # the first one warms up
            ways = list(WAYS.items())
            for name, overrides in ways if turn % 2 else reversed(ways):
                folder = Path(scratch, f"{turn} {name}")
                took = timed(str(folder), *overrides)
                size[name] = sum(path.stat().st_size for path in folder.glob("runs/*/events*"))
                seconds[name] += [took] if turn >= 0 else []
    table = Table("default run, whole process", "seconds", "times logger=none", "events", box=None, header_style="dim")
    for name, values in seconds.items():
        ratios = [value / base for value, base in zip(values, seconds["logger=none"], strict=True)]
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        table.add_row(name, f"{statistics.median(values):.1f}", spread, f"{size[name] / 1000:.0f} KB")
    Console().print(table)


if __name__ == "__main__":
    main()
