"""What a sweep costs: stacked, one by one, in joblib's processes, and as a plain PyTorch loop that leaves no files.

Each sweep is the whole command, less the import of the libraries, in a process of its own: half of the jobs SGD and
half Adam, rates times seeds, 200 epochs on four points. One by one each job draws its pictures, unless told otherwise;
"times launch=local" is jobs a second against those of ten jobs one by one in the same round, with and without pictures.
"plan", "train" and "write" are parts of it; the rest is Hydra, the leaderboard and the page. Memory is the largest that
the process had, with the libraries. How it grows is drawn in outputs/speed.png.
"""

import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from hardware import DEVICE, OVERRIDES, finish
from rich.console import Console
from rich.table import Table
from step import X, plain_loop, quiet

from linear_lab import files, train
from linear_lab.sweep import stacks, sweeper

mpl.use("agg")
from matplotlib import pyplot as plt

EPOCHS = 200
ROUNDS = 2
SIZES: dict[str, list[int]] = {
    "launch=stacked": [10, 100, 1000, 10_000],
    "launch=local": [10],
    "launch=local logger.pictures=false": [10, 100],
    "launch=joblib": [10],
    "plain PyTorch loop": [10, 100],
}
ONCE = [("launch=stacked", 10_000), ("launch=local logger.pictures=false", 100)]  # they take a minute
OUTPUTS = Path(__file__).parents[1] / "outputs"
PICTURE = OUTPUTS / "speed.png"
PARTS = ("plan", "train", "write")


def grid(jobs: int) -> list[str]:
    """Overrides of so many jobs."""
    seeds = min(max(jobs // 100, 1), 10)
    rates = ",".join(f"{rate:.5g}" for rate in np.geomspace(0.001, 0.1, jobs // 2 // seeds))
    return ["optimizer=sgd,adam", f"optimizer.lr={rates}", f"seed=range({seeds})", f"trainer.max_epochs={EPOCHS}"]


def command(launch: str, jobs: int, folder: str) -> dict[str, float]:
    """Sweep as the command does; seconds of its parts."""
    parts = dict.fromkeys((*PARTS, "first files"), 0.0)

    def clocked(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **options)
            finally:
                parts[name] += time.perf_counter() - started

        return run

    sweeper.plan = clocked("plan", sweeper.plan)
    stacks.train_stack = clocked("train", stacks.train_stack)
    stacks.begin = clocked("first files", stacks.begin)
    stacks.Leaving.write = clocked("write", stacks.Leaving.write)
    sys.argv = ["train", "-m", *launch.split(), f"output_root={folder}", "name=study", *OVERRIDES, *grid(jobs)]
    train.main()
    first_files = parts.pop("first files")  # they are written while training begins
    return parts | {"train": parts["train"] - first_files, "write": parts["write"] + first_files}


def plain(jobs: int) -> dict[str, float]:
    """Train as many models one after the other, and keep nothing."""
    x = X.to(DEVICE)
    for kind in (torch.optim.SGD, torch.optim.Adam):
        for rate in np.geomspace(0.001, 0.1, jobs // 2):
            plain_loop([(x, 2 * x)], 1, EPOCHS, kind, float(rate))
    finish()
    return {}


def measured(way: str, jobs: int, folder: str) -> dict[str, float]:
    """Train in a child, which has the libraries already: seconds, their parts, and memory in MB."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        code = 1
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                started = time.perf_counter()
                parts = plain(jobs) if way.startswith("plain") else command(way, jobs, folder)
                seconds = time.perf_counter() - started
            memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            os.write(writing, json.dumps({"seconds": seconds, "memory": memory, **parts}).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{way} of {jobs} jobs failed; look at {folder}")
    found: dict[str, float] = json.loads(text)
    return found


def picture(seconds: dict[str, dict[int, float]]) -> None:
    """Draw how seconds grow with jobs."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for name, of_jobs in seconds.items():
        axes.loglog(list(of_jobs), list(of_jobs.values()), "o-", label=name)
    axes.set(xlabel="jobs", ylabel="seconds, less the import", title=f"A sweep of {EPOCHS} epochs on four points")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    figure.savefig(PICTURE, dpi=110)


def table() -> Table:
    """Measure all, and draw it."""
    quiet()
    OUTPUTS.mkdir(exist_ok=True)
    titles = ("", "jobs", "jobs a second", "times launch=local", "without pictures", "seconds", *PARTS, "MB")
    shown = Table(title=f"whole sweeps of {EPOCHS} epochs, less the import; up to {ROUNDS} rounds, each with its ratio")
    for title in titles:
        shown.add_column(title, justify="right" if title else "left")
    folder = tempfile.mkdtemp(prefix="sweeps-", dir=OUTPUTS)
    found: dict[tuple[str, int], list[dict[str, float]]] = {}
    for turn in range(ROUNDS):
        for way, sizes in SIZES.items():
            for jobs in sizes:
                if turn and (way, jobs) in ONCE:
                    continue
                place = f"{folder}/{files.plain(way)}-{jobs}-{turn}"  # deleted late: new files would be slow to make
                found.setdefault((way, jobs), []).append(measured(way, jobs, place))
    bases = [
        [one["seconds"] / 10 for one in found[way, 10]]
        for way in ("launch=local", "launch=local logger.pictures=false")
    ]
    for (way, jobs), runs in found.items():
        speeds = [jobs / one["seconds"] for one in runs]
        ratios = [[speed * base for speed, base in zip(speeds, of_each, strict=False)] for of_each in bases]
        middle = sorted(runs, key=lambda one: one["seconds"])[len(runs) // 2]
        parts = [f"{middle[part]:.2f}" if middle.get(part) else "" for part in PARTS]
        shown.add_row(
            way, f"{jobs:,}", f"{statistics.median(speeds):.3g}",
            *(" to ".join(dict.fromkeys(f"{ratio:.3g}" for ratio in (min(some), max(some)))) for some in ratios),
            f"{middle['seconds']:.1f}", *parts, f"{middle['memory']:.0f}",
        )  # fmt: skip
    picture({
        way: {jobs: statistics.median(one["seconds"] for one in found[way, jobs]) for jobs in sizes}
        for way, sizes in SIZES.items()
    })  # fmt: skip
    shutil.rmtree(folder)
    return shown


if __name__ == "__main__":
    Console(width=140).print(table())
