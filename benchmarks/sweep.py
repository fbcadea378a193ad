"""What a sweep costs: stacked, one by one, in joblib's processes, and what its peers take, which leave no files.

Each row is a whole command in a fresh process of its own: Adam, rates times seeds, 200 epochs on the four points of
data=toy. Its seconds are those of the process, less those of one that only imports what it needs, in the same round:
torch, lightning.pytorch and polars; torch alone for the loops in PyTorch; jax and optax for JAX. Rows are measured in
two rounds if they take less than 20 seconds, and once otherwise; parts and memory are those of the slower round.
Ratios are of jobs a second, so that a larger one is better: to ten jobs under launch=local, which draws each run's
pictures, and to JAX with as many jobs. A ratio is taken within a round; the smallest and the largest are shown.

Memory is the largest that the process had, with its libraries; files are all that lie in its folder afterwards. The
cache of torch.compile is empty at each start, so that compiling is in it. `process.py` measures; `command.py` says what
the parts of our commands are, those of JAX are compiling and running. Peers take the same steps on the same data, in
float32 on the same device, but for JAX, which takes the CPU. They do not validate, and keep nothing. PyTorch has one
thread, as in our runs; JAX has as many as it chooses. How seconds grow is drawn in outputs/speed.png. ``--quick`` tries
it in two minutes: one round, of few jobs.
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
LONG = 20.0  # seconds of a row that is measured once
HERE = Path(__file__).parent
OUTPUTS = HERE.parent / "outputs"
PICTURE = OUTPUTS / "speed.png"
PEERS = HERE / "peers"
JAX = PEERS / ".venv/installed"  # `make peers` writes it
PYTHON, JAX_PYTHON = sys.executable, str(JAX.parent / "bin/python")
MANY = [100, 1000] if QUICK else [1000, 100_000, 1_000_000]


class Way(NamedTuple):
    """A way to train many models.

    Attributes:
        sizes: numbers of jobs.
        imports: a command that imports what it needs, and does nothing else.
        command: less what depends on the number of jobs.
    """

    sizes: list[int]
    imports: list[str]
    command: list[str]


def ours(launch: str, sizes: list[int]) -> Way:
    """Return a sweep of ours."""
    imports = [PYTHON, "-c", "import torch, lightning.pytorch, polars"]
    steady = ["output_root=.", "name=study", "optimizer=adam", f"trainer.max_epochs={STEPS}", *OVERRIDES]
    return Way(sizes, imports, [PYTHON, str(HERE / "command.py"), *launch.split(), *steady])


def in_torch(script: str, sizes: list[int]) -> Way:
    """Return a peer in PyTorch."""
    return Way(sizes, [PYTHON, "-c", "import torch"], [PYTHON, str(PEERS / script)])


LOCAL, XLA = "launch=local", "JAX and optax, vmap, jit"
WAYS = {
    "launch=stacked hydra.launcher.keep=0": ours("launch=stacked hydra.launcher.keep=0", MANY),
    "launch=stacked": ours("launch=stacked", [1000]),
    LOCAL: ours(LOCAL, [10]),
    "launch=local logger.tensorboard.pictures=false": ours(
        "launch=local logger.tensorboard.pictures=false", [10] if QUICK else [10, 100]
    ),
    "launch=joblib": ours("launch=joblib", [10]),
    "plain PyTorch loop": in_torch("plain_loop.py", [100]),
    "torch.func.vmap, eager": in_torch("vmap_loop.py", MANY),
    XLA: Way(MANY, [JAX_PYTHON, "-c", "import jax, optax"], [JAX_PYTHON, str(PEERS / "jax_adam.py")]),
}
Found = dict[tuple[str, int], dict[int, tuple[float, Measured]]]  # of a round: seconds less the import, and the rest


def arguments(way: Way, jobs: int) -> list[str]:
    """Return a command that trains so many jobs."""
    if "command.py" in way.command[1]:
        rates, seeds = grid(jobs)
        return [*way.command, f"optimizer.lr={','.join(rates)}", f"seed=range({seeds})"]
    return [*way.command, str(jobs), str(DEVICE)]


def measure() -> Found:
    """Measure all ways that are installed."""
    OUTPUTS.mkdir(exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix="sweeps-", dir=OUTPUTS))  # deleted late: new files would be slow to make
    ways = {name: way for name, way in WAYS.items() if name != XLA or JAX.exists()}
    found: Found = {}
    for turn in range(ROUNDS):
        imports: dict[str, float] = {}
        for at, (name, way) in enumerate(ways.items()):
            if (what := " ".join(way.imports)) not in imports:
                places = [folder / f"import-{at}-{turn}-{again}" for again in range(2)]  # the first warms up
                imports[what] = min(measured(way.imports, place).seconds for place in places)
            for jobs in way.sizes:
                of_turns = found.setdefault((name, jobs), {})
                if turn and of_turns[0][1].seconds >= LONG and name != LOCAL:
                    continue
                print(f"round {turn + 1}: {name}, {jobs:,} jobs", file=sys.stderr, flush=True)
                one = measured(arguments(way, jobs), folder / f"{at}-{jobs}-{turn}")
                of_turns[turn] = one.seconds - imports[what], one
    shutil.rmtree(folder)
    return found


def speeds(found: Found, name: str, jobs: int) -> dict[int, float]:
    """Return the jobs a second of each round; none for what was not measured."""
    return {turn: jobs / seconds for turn, (seconds, _) in found.get((name, jobs), {}).items()}


def ratio(those: dict[int, float], base: dict[int, float]) -> str:
    """Show the ratios within the rounds that both have, the smallest and the largest."""
    ratios = [those[turn] / base[turn] for turn in those.keys() & base.keys()]
    return " to ".join(dict.fromkeys(number(value) for value in (min(ratios), max(ratios)))) if ratios else "-"


def number(value: float) -> str:
    """Show three digits, or whole numbers.

    >>> number(0.01234), number(12345.6)
    ('0.0123', '12,346')
    """
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def table() -> Table:
    """Measure all, and draw it."""
    found = measure()
    shown = Table(title=f"whole sweeps of {STEPS} epochs on four points, rounds: {ROUNDS}")
    titles = ("", "jobs", "seconds", "jobs a second", "times local", "times JAX", "MB", "files", "import", "parts")
    for title in titles:
        shown.add_column(title, justify="left" if title in ("", "parts") else "right")
    base = speeds(found, LOCAL, 10)
    for name, way in WAYS.items():
        for jobs in way.sizes:
            if (name, jobs) not in found:
                shown.add_row(name, f"{jobs:,}", "not installed: make peers")
                continue
            runs, mine = found[name, jobs], speeds(found, name, jobs)
            seconds, one = sorted(runs.values(), key=lambda run: run[0])[-1]  # the slower one
            shown.add_row(
                name, f"{jobs:,}", " to ".join(dict.fromkeys(f"{run[0]:.1f}" for run in sorted(runs.values()))),
                number(statistics.mean(mine.values())), ratio(mine, base), ratio(mine, speeds(found, XLA, jobs)),
                f"{one.memory:,.0f}", f"{one.files:,}", f"{one.seconds - seconds:.1f}",
                ", ".join(f"{part} {took:.1f}" for part, took in one.parts.items() if part != "loss" and took >= 0.05),
            )  # fmt: skip
    picture(found)
    return shown


def picture(found: Found) -> None:
    """Draw how seconds grow with jobs."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    for name, way in WAYS.items():
        means = {
            jobs: statistics.mean(seconds for seconds, _ in found[name, jobs].values())
            for jobs in way.sizes
            if (name, jobs) in found
        }
        axes.loglog(list(means), list(means.values()), "o-", label=name)
    axes.set(xlabel="jobs", ylabel="seconds, less the import", title=f"A sweep of {STEPS} epochs on four points")
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2)  # inside, it would cover points
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    Console(width=180).print(table())
