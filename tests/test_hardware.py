"""The messages of benchmarks about arguments that they do not accept, and hardware that is not available."""

from pathlib import Path

import processes
import pytest
import torch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("trainer=tpu", "benchmarks accept trainer=cpu or trainer=gpu, got trainer=tpu\n"),
        (
            "--quick --write",
            "--write wants the measurements of all benchmarks on the CPU; leave --quick and trainer=gpu out\n",
        ),
        pytest.param(
            "trainer=gpu",
            f"trainer=gpu: torch {torch.__version__} finds no GPU; leave trainer=gpu out to measure on the CPU\n",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so the benchmark would run"),
        ),
    ],
)
def test_hardware_that_is_not_there_is_refused_before_anything_is_measured(arguments, said):
    for name in ("", "step.py"):
        run = processes.start(BENCHMARKS / name, *arguments.split())
        assert (*run.communicate(60), run.returncode) == ("", said, 1)
