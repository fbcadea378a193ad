"""Measures sweeps of linear_lab, stacked, one by one and by joblib, compared with peers that write no files.

Each row is a process, from its start to its end, the import of its libraries included. It trains jobs of 200 Adam steps
on the four points of `data=toy`: learning rates times seeds. The peers (the plain loop, `torch.func.vmap` and JAX) take
the same steps on the same data in float32, but neither validate nor keep anything. The cache of `torch.compile` is
empty at each start, so the times include compiling. PyTorch has one thread, and JAX as many as it chooses. With
`trainer=gpu`, all but JAX use the GPU. `launch=local` draws the pictures of each run; `hydra.launcher.keep=0` leaves
out that the best jobs of a stack are trained again alone.
"""

import statistics
import sys
from functools import partial
from pathlib import Path

from hardware import ACCELERATOR, DEVICE, OVERRIDES, QUICK, WRITE
from peers.jobs import STEPS, grid
from process import measured
from rounds import Benchmark, Results

HERE = Path(__file__).parent
PICTURE = HERE.parent / ("docs" if WRITE else "outputs") / "speed.png"
JAX = HERE / "peers/.venv/installed"  # `make peers` writes it
PYTHON, JAX_PYTHON = sys.executable, str(JAX.parent / "bin/python")
LOOP, VMAP, XLA = "plain PyTorch loop", "`torch.func.vmap`, eager", "JAX and optax, vmap, jit"
PEERS = {
    LOOP: (PYTHON, "plain_loop.py"),
    VMAP: (PYTHON, "vmap_loop.py"),
    XLA: (JAX_PYTHON, "jax_adam.py"),
}
MANY = (VMAP, XLA, "launch=stacked hydra.launcher.keep=0")
SIZES = {10: (LOOP, "launch=local", "launch=joblib"), 1000: MANY, 1_000_000: MANY}
if QUICK and ACCELERATOR == "cpu":
    del SIZES[1_000_000]


def command(method: str, jobs: int) -> list[str]:
    """Return the command that trains a number of jobs."""
    if method in PEERS:
        python, script = PEERS[method]
        return [python, str(HERE / "peers" / script), str(jobs), str(DEVICE)]
    rates, seeds = grid(jobs)
    swept = ["optimizer=adam", f"optimizer.lr={','.join(rates)}", f"seed=range({seeds})"]
    overrides = [*method.split(), "output_root=.", f"trainer.max_epochs={STEPS}", *OVERRIDES, *swept]
    return [PYTHON, "-m", "linear_lab.train", "-m", "name=study", *overrides]


def label(method: str) -> str:
    """Return the name of a method in the table."""
    return method if method in PEERS else f"`{method}`"


CASES = {
    f"{jobs:,} jobs": {
        label(method): partial(measured, *command(method, jobs)) if method != XLA or JAX.exists() else None
        for method in methods
    }
    for jobs, methods in SIZES.items()
}
BENCHMARK = Benchmark("Sweeps", __doc__, CASES, rounds=1 if QUICK else 2, processes=True)


def picture(results: Results) -> None:
    """Plot the seconds over the number of jobs."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt
    from matplotlib.ticker import LogFormatter

    figure, axes = plt.subplots(figsize=(7, 5), layout="constrained")
    lines: dict[str, dict[int, float]] = {}
    for jobs, methods in zip(SIZES, results.values(), strict=True):
        for method, rounds in methods.items():
            if rounds:
                seconds = statistics.median(one.seconds for one in rounds)
                lines.setdefault(method.replace("`", ""), {})[jobs] = seconds
    for method, points in lines.items():
        axes.loglog(list(points), list(points.values()), "o-", label=method)
    axes.set(xlabel="jobs", ylabel="seconds", title=f"A sweep of {STEPS} epochs on four points")
    axes.xaxis.set_major_formatter("{x:,.0f}")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter(LogFormatter())
    axes.grid(alpha=0.3, which="both")
    figure.legend(loc="outside lower center", ncols=2)  # inside the axes, it would cover points
    figure.savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    imports = ["import torch, lightning.pytorch, polars", "import jax, optax"]
    for python, code in zip((PYTHON, JAX_PYTHON) if JAX.exists() else (PYTHON,), imports, strict=False):
        measured(python, "-c", code)  # fills the disk's cache
    measurements = BENCHMARK.measure()
    picture(measurements)
    print(BENCHMARK.markdown(measurements))
