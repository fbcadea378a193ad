"""The map of `make gpu`, its file of results, and the messages about its arguments."""

import re
import sys
from pathlib import Path

import gpu
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
            "finds no GPU; try it on the CPU with trainer=cpu side=64",
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


def test_the_parts_are_programs_of_the_project():
    of_gpu, of_cpu = gpu.parts("gpu", "4096"), gpu.parts("cpu", "64")
    assert sum(limit for limit, _ in of_gpu.values()) <= 8 * 60
    assert [*of_cpu] == ["tests", "map"]
    for _, arguments in of_gpu.values():
        paths = [Path(gpu.CHECKOUT, argument) for argument in arguments if argument.endswith(".py")]
        assert len(paths) == 1
        assert paths[0].is_file()


def test_all_parts_are_in_one_file_whatever_becomes_of_them(monkeypatch, tmp_path):
    child = "print('begun', flush=True); subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    parts = {
        "good": "print(6 * 7)",
        "wrong": "print('half'); raise SystemExit(3)",
        "endless": f"import subprocess, sys; {child}",
    }
    limits = {"good": 60, "wrong": 60, "endless": 3}
    monkeypatch.setattr(gpu, "parts", lambda **_: {name: (limits[name], ["-c", code]) for name, code in parts.items()})
    monkeypatch.setattr(gpu, "CHECKOUT", tmp_path)
    monkeypatch.setattr(gpu, "OUTPUT", tmp_path / "outputs/gpu.md")
    monkeypatch.setattr(sys, "argv", ["gpu.py", "trainer=cpu"])
    with pytest.raises(SystemExit, match="1"):
        gpu.main()
    text = gpu.OUTPUT.read_text()
    assert f"torch {torch.__version__}" in text
    assert re.search(r"\| good \| \d+ \| passed \|\n\| wrong \| \d+ \| exit code 3 \|\n", text)
    assert re.search(r"\| endless \| \d+ \| stopped after 3 s \|\n", text)
    assert [*re.findall(r"## (\w+)\n\n```text\n(.*)\n```", text)] == [
        ("good", "42"),
        ("wrong", "half"),
        ("endless", "begun"),
    ]
    assert text.split("## good")[0].rstrip().endswith("s |")
