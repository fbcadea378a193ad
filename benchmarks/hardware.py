"""Reads the arguments of all benchmarks: the device, which peers use too, `--quick` and `--write`.

The device is the CPU, or a GPU with `trainer=gpu`.
"""

import os
import platform
import re
import sys
from pathlib import Path

import torch

QUICK, WRITE = "--quick" in sys.argv[1:], "--write" in sys.argv[1:]
OVERRIDES = [argument for argument in sys.argv[1:] if argument not in ("--quick", "--write")]
ACCELERATOR = "gpu" if OVERRIDES == ["trainer=gpu"] else "cpu"
DEVICE = torch.device("cuda" if ACCELERATOR == "gpu" else "cpu")

if OVERRIDES not in ([], ["trainer=cpu"], ["trainer=gpu"]):
    sys.exit(f"benchmarks accept trainer=cpu or trainer=gpu, got {' '.join(OVERRIDES)}")
if WRITE and (QUICK or ACCELERATOR == "gpu"):
    sys.exit("--write wants the measurements of all benchmarks on the CPU; leave --quick and trainer=gpu out")
if ACCELERATOR == "gpu" and not torch.cuda.is_available():
    sys.exit(f"trainer=gpu: torch {torch.__version__} finds no GPU; leave trainer=gpu out to measure on the CPU")


def finish() -> None:
    """Wait until the GPU has finished its computations."""
    if ACCELERATOR == "gpu":
        torch.cuda.synchronize()


def name() -> str:
    """Return a description of the hardware, with the version of torch."""
    cpuinfo = Path("/proc/cpuinfo")
    model = re.search(r"model name\s*: (.+)", cpuinfo.read_text() if cpuinfo.exists() else "")
    processor = f"{os.cpu_count()} cores of {model[1] if model else platform.machine()}, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {processor}" if ACCELERATOR == "gpu" else processor
