"""Selects the device of all benchmarks, peers included: the CPU, or a GPU with the argument ``trainer=gpu``.

``--quick`` runs only the benchmark of sweeps, with few jobs.
"""

import os
import sys

import torch

QUICK = "--quick" in sys.argv[1:]
OVERRIDES = [argument for argument in sys.argv[1:] if argument != "--quick"]
ACCELERATOR = "gpu" if OVERRIDES == ["trainer=gpu"] else "cpu"
DEVICE = torch.device("cuda" if ACCELERATOR == "gpu" else "cpu")

if OVERRIDES not in ([], ["trainer=cpu"], ["trainer=gpu"]):
    sys.exit(f"benchmarks accept trainer=cpu or trainer=gpu, got {' '.join(OVERRIDES)}")
if ACCELERATOR == "gpu" and not torch.cuda.is_available():
    sys.exit(f"trainer=gpu: torch {torch.__version__} finds no GPU; leave trainer=gpu out to measure on the CPU")


def finish() -> None:
    """Wait until the GPU has finished its computations."""
    if ACCELERATOR == "gpu":
        torch.cuda.synchronize()


def name() -> str:
    """Return a description of the hardware, with the version of torch."""
    processor = f"{os.cpu_count()} CPU cores, torch {torch.__version__}"
    return f"{torch.cuda.get_device_name()}, {processor}" if ACCELERATOR == "gpu" else processor
