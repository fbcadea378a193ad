"""Measures sweeps of linear_lab, stacked, one by one and by joblib, compared with peers that write no files.

Each row is a whole command in a new process: Adam, learning rates times seeds, 200 epochs on the four points of
data=toy. The seconds are those of the process minus those of a process of the same round that only imports the
libraries: torch, lightning.pytorch and polars; only torch for the loops in PyTorch; jax and optax for JAX. Rows of less
than 20 seconds are measured in two rounds, others once; parts and memory are those of the slower round. The ratios
divide jobs per second, so a larger ratio is better: by those of ten jobs with launch=local, which draws the pictures of
each run, and by those of JAX for as many jobs. Ratios are taken within a round; the smallest and the largest are shown.

Memory is the peak of the process, including its libraries. Files are those in its folder afterwards. The cache of
torch.compile is empty at each start, so the times include compiling. `process.py` measures; `command.py` explains the
parts of a sweep; those of JAX are compiling and running. The peers take the same steps on the same data, in float32, on
the same device, except for JAX, which uses the CPU. They do not validate. PyTorch has one thread, as in runs of
linear_lab; JAX has as many as it chooses. The seconds are plotted over the number of jobs in outputs/speed.png.
``--quick`` takes two minutes: one round, with few jobs.
"""

import shutil
import statistics
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from hardware import DEVICE, OVERRIDES, QUICK
from peers.jobs import STEPS, grid
from process import Measured, measured
from rich.console import Console
from rich.table import Table

ROUNDS = 1 if QUICK else 2
LONG = 20.0  # rows that take more seconds are measured once
HERE = Path(__file__).parent
OUTPUTS = HERE.parent / "outputs"
PICTURE = OUTPUTS / "speed.png"
PEERS = HERE / "peers"
JAX = PEERS / ".venv/installed"  # `make peers` writes it
PYTHON, JAX_PYTHON = sys.executable, str(JAX.parent / "bin/python")
MANY = [100, 1000] if QUICK else [1000, 100_000, 1_000_000]


class Method(NamedTuple):
    """A method to train many models.

    Attributes:
        sizes: the numbers of jobs.
        imports: a command that only imports the libraries.
        command: the command, without the arguments that depend on the number of jobs.
    """

    sizes: list[int]
    imports: list[str]
    command: list[str]


def ours(launch: str, sizes: list[int]) -> Method:
    """Return a sweep of linear_lab."""
    imports = [PYTHON, "-c", "import torch, lightning.pytorch, polars"]
    common = ["output_root=.", "name=study", "optimizer=adam", f"trainer.max_epochs={STEPS}", *OVERRIDES]
    return Method(sizes, imports, [PYTHON, str(HERE / "command.py"), *launch.split(), *common])


def in_torch(script: str, sizes: list[int]) -> Method:
    """Return a peer in PyTorch."""
    return Method(sizes, [PYTHON, "-c", "import torch"], [PYTHON, str(PEERS / script)])


LOCAL, XLA = "launch=local", "JAX and optax, vmap, jit"
METHODS = {
    "launch=stacked hydra.launcher.keep=0": ours("launch=stacked hydra.launcher.keep=0", MANY),
    "launch=stacked": ours("launch=stacked", [1000]),
    LOCAL: ours(LOCAL, [10]),
    "launch=local logger.tensorboard.pictures=false": ours(
        "launch=local logger.tensorboard.pictures=false", [10] if QUICK else [10, 100]
    ),
    "launch=joblib": ours("launch=joblib", [10]),
    "plain PyTorch loop": in_torch("plain_loop.py", [100]),
    "torch.func.vmap, eager": in_torch("vmap_loop.py", MANY),
    XLA: Method(MANY, [JAX_PYTHON, "-c", "import jax, optax"], [JAX_PYTHON, str(PEERS / "jax_adam.py")]),
}
# by method and number of jobs, and by round: the seconds minus those of the import, and the other measurements
Results = dict[tuple[str, int], dict[int, tuple[float, Measured]]]


def arguments(method: Method, jobs: int) -> list[str]:
    """Return the command that trains a number of jobs."""
    if "command.py" in method.command[1]:
        rates, seeds = grid(jobs)
        return [*method.command, f"optimizer.lr={','.join(rates)}", f"seed=range({seeds})"]
    return [*method.command, str(jobs), str(DEVICE)]


def measure() -> Results:
    """Measure all methods that are installed."""
    OUTPUTS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sweeps-", dir=OUTPUTS))  # deleted at the end, since deleting slows writes
    methods = {name: method for name, method in METHODS.items() if name != XLA or JAX.exists()}
    results: Results = {}
    for number in range(ROUNDS):
        imports: dict[str, float] = {}
        for at, (name, method) in enumerate(methods.items()):
            if (code := " ".join(method.imports)) not in imports:
                places = [folder / f"import-{at}-{number}-{again}" for again in range(2)]  # the first is a warm-up
                imports[code] = min(measured(method.imports, place).seconds for place in places)
            for jobs in method.sizes:
                rounds = results.setdefault((name, jobs), {})
                if number and rounds[0][1].seconds >= LONG and name != LOCAL:
                    continue
                print(f"round {number + 1}: {name}, {jobs:,} jobs", file=sys.stderr, flush=True)
                one = measured(arguments(method, jobs), folder / f"{at}-{jobs}-{number}")
                rounds[number] = one.seconds - imports[code], one
    shutil.rmtree(folder)
    return results


def speeds(results: Results, name: str, jobs: int) -> dict[int, float]:
    """Return the jobs per second of each round; {} if it was not measured."""
    return {number: jobs / seconds for number, (seconds, _) in results.get((name, jobs), {}).items()}


def ratio(speed: dict[int, float], base: dict[int, float]) -> str:
    """Return the smallest and the largest ratio within a round, as text."""
    ratios = [speed[number] / base[number] for number in speed.keys() & base.keys()]
    return " to ".join(dict.fromkeys(digits(value) for value in (min(ratios), max(ratios)))) if ratios else "-"


def digits(value: float) -> str:
    """Return three digits of a number, or a whole number.

    >>> digits(0.01234), digits(12345.6)
    ('0.0123', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table() -> Table:
    """Measure all methods, draw the picture, and return the table."""
    results = measure()
    shown = Table(title=f"whole sweeps of {STEPS} epochs on four points, rounds: {ROUNDS}")
    titles = ("", "jobs", "seconds", "jobs per second", "times local", "times JAX", "MB", "files", "import", "parts")
    for title in titles:
        shown.add_column(title, justify="left" if title in ("", "parts") else "right")
    base = speeds(results, LOCAL, 10)
    for name, method in METHODS.items():
        for jobs in method.sizes:
            if (name, jobs) not in results:
                shown.add_row(name, f"{jobs:,}", "not installed: make peers")
                continue
            rounds, speed = results[name, jobs], speeds(results, name, jobs)
            seconds, one = max(rounds.values(), key=lambda pair: pair[0])  # the slower round
            parts = [f"{part} {took:.1f}" for part, took in one.parts.items() if part != "loss" and took >= 0.05]
            shown.add_row(
                name, f"{jobs:,}", " to ".join(dict.fromkeys(f"{pair[0]:.1f}" for pair in sorted(rounds.values()))),
                digits(statistics.mean(speed.values())), ratio(speed, base), ratio(speed, speeds(results, XLA, jobs)),
                f"{one.memory:,.0f}", f"{one.files:,}", f"{one.seconds - seconds:.1f}", ", ".join(parts),
            )  # fmt: skip
    picture(results)
    return shown


def picture(results: Results) -> None:
    """Plot the seconds over the number of jobs."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, method in METHODS.items():
        means = {
            jobs: statistics.mean(seconds for seconds, _ in results[name, jobs].values())
            for jobs in method.sizes
            if (name, jobs) in results
        }
        axes.loglog(list(means), list(means.values()), "o-", label=name)
    axes.set(xlabel="jobs", ylabel="seconds without the import", title=f"A sweep of {STEPS} epochs on four points")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2)  # inside the axes, it would cover points
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    Console(width=180).print(table())
