"""Measures the default run and `--help` as whole processes.

Each row is a process, from its start to its end. The baseline imports Lightning, and trains the 500 steps of the
default run in a plain PyTorch loop, which keeps nothing. The rows of the default run differ in what they log for the
dashboard.
"""

import sys
from functools import partial

from hardware import DEVICE, OVERRIDES
from process import measured
from rounds import Benchmark

PLAIN_LOOP = f"""
import lightning.pytorch
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
TRAIN = (sys.executable, "-m", "linear_lab.train")
RUN = (*TRAIN, *OVERRIDES, "output_root=.")
COMMANDS = {
    "Lightning's import, and a plain PyTorch loop": (sys.executable, "-c", PLAIN_LOOP),
    "`--help`": (*TRAIN, "--help"),
    "default run, `logger=none`": (*RUN, "logger=none"),
    "default run, `logger.tensorboard.pictures=false`": (*RUN, "logger.tensorboard.pictures=false"),
    "default run": RUN,
}
CASES = {"one process": {name: partial(measured, *command) for name, command in COMMANDS.items()}}
BENCHMARK = Benchmark("The start, and one run", __doc__, CASES, rounds=4, processes=True)

if __name__ == "__main__":
    measured(*RUN)  # fills the disk's cache
    print(BENCHMARK.markdown(BENCHMARK.measure()))
