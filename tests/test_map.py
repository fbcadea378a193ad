"""The benchmark that trains a map: its numbers, its picture, and the messages about its arguments."""

import map as benchmark
import processes
import pytest
import torch
from torch import nn

BENCHMARKS = benchmark.PICTURE.parents[1] / "benchmarks"
X = torch.tensor([[1.0], [2.0], [3.0], [4.0]])


@pytest.fixture(scope="module")
def runs():
    return benchmark.train(64, torch.device("cpu"), chunk=1000)  # chunks of 15 rows, and a last one of four


def alone(lr, momentum):
    """Return the final loss of a plain loop."""
    torch.manual_seed(0)
    model = nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    for _ in range(benchmark.STEPS):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(X), 2 * X).backward()
        optimizer.step()
    return nn.functional.mse_loss(model(X), 2 * X).item()


def test_a_map_has_the_losses_of_plain_loops(runs):
    some = range(0, 64, 12)
    for row, momentum in zip(some, runs.momentum[some].tolist(), strict=True):
        for column, lr in zip(some, runs.lr[some].tolist(), strict=True):
            loss, wanted = runs.losses[row, column].item(), alone(lr, momentum)
            if runs.diverged[row, column]:
                assert not wanted <= runs.first
            else:
                assert loss == pytest.approx(wanted, rel=1e-3, abs=1e-9)


def test_the_runs_beyond_the_largest_stable_learning_rate_diverge(runs):
    assert torch.equal(runs.diverged, runs.lr > runs.stable[:, None])
    assert 600 < runs.diverged.sum() < 800
    assert (runs.losses[runs.diverged] < 1e12).any()  # grows too slowly to be stopped


def test_a_map_is_drawn(runs, tmp_path):
    benchmark.draw(runs, tmp_path / "map.png")
    assert (tmp_path / "map.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["side=many"], "accepted are trainer=gpu or trainer=cpu"),
        (["trainer=cpu", "size=64"], "got trainer=cpu size=64"),
        pytest.param(
            [],
            "finds no GPU; try all of it on the CPU with trainer=cpu side=64",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, so it would run"),
        ),
    ],
)
def test_arguments_that_cannot_be_used_are_told_in_one_line(arguments, said):
    for script in ("map.py", "gpu.py"):
        run = processes.start(BENCHMARKS / script, *arguments)
        out, errors = run.communicate(60)
        assert (out, errors.count("\n"), run.returncode) == ("", 1, 1)
        assert said in errors
