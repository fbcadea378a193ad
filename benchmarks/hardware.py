"""What benchmarks train on: the CPU, or with the argument ``trainer=gpu`` a GPU, for plain loops and peers too.

``--quick`` tries the benchmark of sweeps, with few jobs.
"""

import os
import sys

import torch

QUICK = "--quick" in sys.argv[1:]
OVERRIDES = [argument for argument in sys.argv[1:] if argument != "--quick"]
ACCELERATOR = "gpu" if OVERRIDES == ["trainer=gpu"] else "cpu"
DEVICE = torch.device("cuda" if ACCELERATOR == "gpu" else "cpu")

if OVERRIDES not in ([], ["trainer=cpu"], ["trainer=gpu"]):
    sys.exit(f"benchmarks take trainer=cpu or trainer=gpu, got {' '.join(OVERRIDES)}")
if ACCELERATOR == "gpu" and not torch.cuda.is_available():
    sys.exit(f"trainer=gpu: torch {torch.__version__} sees no GPU; leave it out to measure on the CPU")


def finish() -> None:
    """Wait for what a GPU still computes."""
    if ACCELERATOR == "gpu":
        torch.cuda.synchronize()


def name() -> str:
    """Name what is measured on."""
    processor = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {processor}" if ACCELERATOR == "gpu" else processor
