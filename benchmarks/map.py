"""Trains a map of runs of SGD, learning rate by momentum, on one device; shows the seconds, and draws outputs/map.png.

Each run takes 200 steps on the four points of data=toy. The runs are trained as stacks, chunk by chunk, and only the
final loss of each run is kept. ``side=64`` trains 64 x 64 runs instead of 4,096 x 4,096, ``trainer=cpu`` trains on the
CPU, and ``compile=true`` compiles the step. The seconds do not include the imports and the picture.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from linear_lab import compose
from linear_lab.data import LinearData
from linear_lab.fitting.build import build
from linear_lab.models import SupervisedModule
from linear_lab.stacked.loop import Loop
from linear_lab.stacked.losses import mse
from linear_lab.stacked.optimizers import MODES, RULES
from linear_lab.stacked.step import Models, StackSpec, Stepper, capacity
from linear_lab.theory.least_squares import least_squares
from linear_lab.theory.stability import stable_lr

STEPS = 200
OPTIONS = {"trainer": "gpu", "side": "4096", "compile": "false"}
# most runs in a chunk: on a GPU so many that computing takes longer than starting the kernels; on the CPU, more runs do
# not fit into its cache
CHUNKS = {"gpu": 1 << 22, "cpu": 1 << 16}
PICTURE = Path(__file__).parents[1] / "outputs/map.png"


@dataclass(frozen=True)
class Map:
    """The runs of a map.

    Attributes:
        lr: learning rates, ``(L,)`` float64, from 1e-4 to 1.
        momentum: momenta, ``(M,)`` float64, from 0 to 0.999.
        stable: for each momentum, the learning rate below which SGD converges, ``(M,)`` float64.
        first: the loss of the initial model, which all runs share.
        losses: final losses on the training data, ``(M, L)`` float32.
        diverged: whether a run has diverged, by the rules of single runs, ``(M, L)`` bool.
    """

    lr: Tensor
    momentum: Tensor
    stable: Tensor
    first: float
    losses: Tensor
    diverged: Tensor


def train(side: int, device: torch.device, chunk: int, *, compiled: bool = False) -> Map:
    """Train ``side`` x ``side`` runs in chunks of at most ``chunk`` runs, and of at most half of the GPU's memory."""
    data, module = build(compose(["data=toy", "optimizer=sgd", "logger=none"]))
    assert isinstance(data, LinearData)
    assert isinstance(module, SupervisedModule)
    lr = torch.logspace(-4, 0, side, dtype=torch.float64)
    momentum = 1 - torch.logspace(0, -3, side, dtype=torch.float64)
    curvature = least_squares(*data.raw["train"], bias=True).curvature
    stable = torch.tensor([stable_lr(curvature, momentum=one) for one in momentum.tolist()], dtype=torch.float64)
    modes = dict.fromkeys(MODES, False)
    plan = StackSpec(module, data, RULES["torch.optim.SGD"], modes, mse, "train/loss", "min", STEPS, STEPS, STEPS)
    memory = torch.cuda.mem_get_info(device)[0] // 2 if device.type == "cuda" else 1 << 30
    rows = max(min(chunk, capacity(plan, memory, chunk)) // side, 1)  # rows of the map in a chunk
    stepper = Stepper(plan, compiled=compiled)
    chunks = [final(plan, stepper, lr, part, device) for part in momentum.split(rows)]
    losses, infinite, first = (torch.cat(values).cpu() for values in zip(*chunks, strict=True))
    losses, infinite = losses.float().reshape(side, side), infinite.reshape(side, side)
    grown = (losses > first[0]) & (lr > stable[:, None])
    return Map(lr, momentum, stable, first[0].item(), losses, infinite | grown)


def final(plan: StackSpec, stepper: Stepper, lr: Tensor, momentum: Tensor, device: torch.device) -> tuple[Tensor, ...]:
    """Train all pairs of learning rate and momentum; return the final losses, which diverged, and the first losses."""
    jobs = len(momentum) * len(lr)
    numbers = {"lr": lr.repeat(len(momentum)), "momentum": momentum.repeat_interleave(len(lr))}
    numbers = {name: values.to(device) for name, values in numbers.items()}
    start = {name: values.detach().to(device) for name, values in plan.module.named_parameters()}
    parameters = {name: values.repeat(jobs, *[1] * values.ndim) for name, values in start.items()}
    loop = Loop(plan, Models(parameters, numbers, None, torch.zeros(jobs, dtype=torch.int64)), stepper)
    loop.run()
    return loop.measure(("train",))["train/loss"], ~loop.summary.alive, loop.summary.first["train/loss"]


def draw(runs: Map, path: Path) -> None:
    """Draw the map: the logarithm of the final loss over learning rate and momentum; diverged runs are red."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 6.5), layout="constrained")
    losses = np.ma.masked_array(runs.losses.clamp(min=1e-16).log10().numpy(), runs.diverged.numpy())
    colours = mpl.colormaps["viridis_r"].with_extremes(bad="#c0392b")
    low, high = runs.lr.log10()[[0, -1]].tolist()
    image = axes.imshow(
        losses, origin="lower", aspect="auto", extent=(low, high, 0, 3), cmap=colours, vmin=-14,
        vmax=np.log10(runs.first), interpolation="nearest" if len(losses) < 500 else "antialiased",
    )  # fmt: skip
    heights = -(1 - runs.momentum).log10()
    axes.plot(runs.stable.log10(), heights, "w--", linewidth=1.2, label="largest stable learning rate")
    axes.fill_between([], [], color="#c0392b", label="diverged")
    axes.set_xticks(range(-4, 1), [f"{10.0**k:g}" for k in range(-4, 1)])
    axes.set_yticks(range(4), ["0", "0.9", "0.99", "0.999"])
    axes.set(xlabel="learning rate", ylabel="momentum", xlim=(low, high), ylim=(0, 3))
    axes.set_title(f"{runs.losses.numel():,} runs of SGD, {STEPS} steps each, on four points")
    figure.colorbar(image, label="log10 of the final loss", extend="both")
    figure.legend(loc="outside lower center", ncols=2, facecolor="#888888", labelcolor="white")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=130)


def options(arguments: Sequence[str], defaults: dict[str, str]) -> dict[str, str]:
    """Return the arguments ``key=value`` over their defaults, and end the process if one cannot be used."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    chosen = defaults | given
    if given.keys() - defaults or chosen["trainer"] not in ("gpu", "cpu") or not chosen["side"].isdecimal():
        sys.exit(f"accepted are trainer=gpu or trainer=cpu, side=<number> and the like, got {' '.join(arguments)}")
    if chosen["trainer"] == "gpu" and not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__} finds no GPU; try it on the CPU with trainer=cpu side=64")
    return chosen


def main() -> None:
    """Train the map, print what it took, and draw it."""
    chosen = options(sys.argv[1:], OPTIONS)
    device, side = torch.device("cuda" if chosen["trainer"] == "gpu" else "cpu"), int(chosen["side"])
    torch.set_num_threads(1)  # as in runs
    train(2, device, 4)  # imports torch.func, and loads the kernels
    started = time.perf_counter()
    runs = train(side, device, CHUNKS[chosen["trainer"]], compiled=chosen["compile"] == "true")
    seconds = time.perf_counter() - started
    draw(runs, PICTURE)
    name = torch.cuda.get_device_name() if device.type == "cuda" else "the CPU"
    count = runs.losses.numel()
    print(f"{side:,} x {side:,} = {count:,} runs of {STEPS} steps on {name}: {seconds:.1f} s")
    print(f"{count / seconds:,.0f} runs per second; {runs.diverged.double().mean():.1%} of the runs diverged")
    if device.type == "cuda":
        print(f"largest memory: {torch.cuda.max_memory_allocated() / 1e9:.1f} GB")


if __name__ == "__main__":
    main()
