"""Measures ``--help`` and the default run as whole processes, compared with the least that they need.

For ``--help`` this is importing lightning.pytorch ("import"), and for a run also the same 500 steps in plain PyTorch
("loop"). Each round starts all processes one after the other, and every other round in the opposite order. A row shows
the ratio within a round: the median, the smallest and the largest.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time

from hardware import DEVICE, OVERRIDES
from rich.console import Console
from rich.table import Table

ROUNDS = 5
IMPORT = "import lightning.pytorch"
PLAIN_LOOP = f"""
{IMPORT}
import torch
from torch import nn

x = torch.tensor([[1.0], [2.0], [3.0], [4.0]], device="{DEVICE}")
model, loss_function = nn.Linear(1, 1, device="{DEVICE}"), nn.MSELoss()
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
for _ in range(500):
    optimizer.zero_grad()
    loss = loss_function(model(x), 2 * x)
    loss.backward()
    optimizer.step()
"""
TRAIN = ("-m", "linear_lab.train")
COMMANDS = {
    "import": ("-c", IMPORT),
    "--help": (*TRAIN, "--help"),
    "import and loop": ("-c", PLAIN_LOOP),
    "default run": (*TRAIN, *OVERRIDES),
    "default run, logger=none": (*TRAIN, *OVERRIDES, "logger=none"),
}
BASELINES = {
    "--help": "import",
    "default run": "import and loop",
    "default run, logger=none": "import and loop",
}


def timed(*arguments: str) -> float:
    """Run Python in an empty folder; return the seconds from its start to its end."""
    compiled = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        subprocess.run([sys.executable, *arguments], check=True, capture_output=True, cwd=folder, env=compiled)
        return time.perf_counter() - started


def rows(rounds: int = ROUNDS) -> list[tuple[str, float, str, list[float]]]:
    """Return rows of a table: a command, its median seconds, its baseline, and the ratio of each round."""
    seconds: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(-1, rounds):  # round -1 is a warm-up
        commands = list(COMMANDS.items())
        for name, arguments in commands if number % 2 else reversed(commands):
            elapsed = timed(*arguments)
            seconds[name] += [elapsed] if number >= 0 else []
    ratios = {
        name: [one / other for one, other in zip(seconds[name], seconds[base], strict=True)]
        for name, base in BASELINES.items()
    }
    return [(name, statistics.median(seconds[name]), base, ratios[name]) for name, base in BASELINES.items()]


def main() -> None:
    """Print the table."""
    titles = ("whole process", "seconds", "baseline", "ratio", "smallest to largest")
    table = Table(*titles, box=None, header_style="dim")
    for name, median, base, ratios in rows():
        spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
        table.add_row(name, f"{median:.1f}", base, f"{statistics.median(ratios):.2f}", spread)
    Console().print(table)


if __name__ == "__main__":
    main()
