"""The package as it is installed elsewhere: sdist, wheel, and its commands in an environment without the checkout."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import urllib.request
import venv
import zipfile
from pathlib import Path

import pytest

from linear_lab import CHECKOUT

pytestmark = pytest.mark.wheel

FILES = {path.relative_to(CHECKOUT).as_posix() for path in (CHECKOUT / "conf").rglob("*.yaml")}
SHORT = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=1")
# what a shell has that was never in this project
ALONE = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV", "PIP_"))}


def run(*words, cwd, code=0, env=None):
    """What a command prints, on standard output and error together."""
    result = subprocess.run(
        [*map(str, words)],
        cwd=cwd,
        env=env or ALONE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert result.returncode == code, result.stdout
    return result.stdout


def pip(*arguments, cwd):
    return run(sys.executable, "-m", "pip", *arguments, cwd=cwd)


def environment(folder):
    """An empty environment, to which this one's packages are lent; their .pth files, the project's, are not read."""
    venv.create(folder, with_pip=False)
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return packages


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The sdist, and the wheel that was built from it."""
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-m", "hatchling", "build", "--target", "sdist", "--directory", folder, cwd=CHECKOUT)
    (sdist,) = folder.glob("*.tar.gz")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", folder, sdist, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def installed(dist, tmp_path_factory):
    """The folder of the commands that the wheel has installed."""
    folder = tmp_path_factory.mktemp("installed")
    environment(folder)
    (wheel,) = dist.glob("*.whl")
    pip("--python", folder / "bin/python", "install", "--no-deps", "--no-index", wheel, cwd=folder)
    return folder / "bin"


@pytest.fixture(scope="module")
def place(installed, tmp_path_factory):
    """A folder of somebody who has a conf/ of another project, and one run."""
    folder = tmp_path_factory.mktemp("place")
    for name in ("conf", "mine"):
        (folder / name / "optimizer").mkdir(parents=True)
    (folder / "conf/optimizer/decoy.yaml").write_text("_target_: torch.optim.SGD\n")
    (folder / "conf/train.yaml").write_text("decoy: true\n")
    (folder / "mine/optimizer/nadam.yaml").write_text("_target_: torch.optim.NAdam\nlr: 0.1\n")
    (folder / "trained.txt").write_text(run(installed / "linear-lab-train", *SHORT, cwd=folder))
    return folder


def runs(place):
    return sorted((place / "outputs/runs").iterdir())


def test_sdist_and_wheel_have_conf(dist):
    with tarfile.open(next(dist.glob("*.tar.gz"))) as sdist:
        names = {name.partition("/")[2] for name in sdist.getnames()}
    assert names >= FILES | {"src/linear_lab/train.py", "README.md", "LICENSE", "Makefile", "tests/test_wheel.py"}
    with zipfile.ZipFile(next(dist.glob("*.whl"))) as wheel:
        names = {*wheel.namelist()}
    assert {name for name in names if "/conf/" in name} == {f"linear_lab/{name}" for name in FILES}
    assert {name.partition("/")[0] for name in names} == {"linear_lab", "hydra_plugins", "linear_lab-0.1.0.dist-info"}


def test_an_editable_install_has_no_copy(tmp_path):
    packages = environment(tmp_path / "editable")
    python = tmp_path / "editable/bin/python"
    options = ("--no-build-isolation", "--no-deps", "--no-index")
    pip("--python", python, "install", *options, "--editable", CHECKOUT, cwd=tmp_path)
    assert not [path for path in packages.rglob("*") if path.suffix == ".yaml" or path.name == "linear_lab"]
    says = run(python, "-c", "import linear_lab; print(linear_lab.CONF, linear_lab.CHECKOUT)", cwd=tmp_path)
    assert says.split() == [str(CHECKOUT / "conf"), str(CHECKOUT)]


def test_nothing_of_the_checkout_is_imported(installed, tmp_path):
    code = "import linear_lab as l, hydra_plugins.linear_lab_plugins as p; print(l.CONF, p.__file__, l.CHECKOUT)"
    conf, plugin, checkout = run(installed / "python", "-c", code, cwd=tmp_path).split()
    assert checkout == "None"
    assert all(Path(path).is_relative_to(installed.parent) for path in (conf, plugin))


def test_train_and_the_commands_that_it_names(installed, place):
    (folder, *_) = runs(place)
    said = (place / "trained.txt").read_text()
    named = re.findall(r"^(look|evaluate|predict|go on) +(.+)$", said, re.MULTILINE)
    assert [name for name, _ in named] == ["look", "evaluate", "predict", "go on"]
    for name, line in named:
        words = shlex.split(line.replace("<more>", "4"))
        assert (place / words[0]).exists()
        assert f"outputs/runs/{folder.name}" in line
        if name != "look":
            run(*words, cwd=place)
    record = json.loads((folder / "result.json").read_text())
    assert (record["status"], record["steps"], record["git"]) == ("completed", 4, None)


def test_evaluate_predict_and_export_of_the_latest_run(installed, place):
    (folder, *_) = runs(place)
    for command, typed in {"evaluate": [], "predict": ["x=[1,2]"], "export": []}.items():
        said = run(installed / f"linear-lab-{command}", "run=latest", *typed, cwd=place)
        assert f"run=latest is outputs/runs/{folder.name}\n" in said
    assert (folder / "model.pt2").exists()


@pytest.mark.parametrize("launch", ["local", "stacked"])
def test_a_sweep_and_its_leaderboard(launch, installed, place):
    typed = (f"name={launch}", f"launch={launch}", "optimizer.lr=0.01,0.1", *SHORT, "logger.tensorboard.pictures=false")
    said = run(installed / "linear-lab-train", "-m", *typed, cwd=place)
    assert "2 jobs: 2 completed" in said
    assert "make" not in said
    folder = place / "outputs/sweeps" / launch
    assert "2 jobs: 2 completed" in (folder / "leaderboard.md").read_text()
    assert (folder / "results.parquet").exists() == (launch == "stacked")
    said = run(installed / "linear-lab-leaderboard", "sweep=latest", cwd=place)
    assert said.startswith(f"sweep=latest is outputs/sweeps/{launch}\n")
    assert "2 jobs: 2 completed" in said


def test_config_files_of_ones_own_and_no_others(installed, place):
    said = run(installed / "linear-lab-train", "optimizer=decoy", cwd=place, code=1)
    assert said.startswith("error: optimizer=decoy: choose one of adam, ")
    said = run(installed / "linear-lab-train", "--config-dir", "mine", "optimizer=nadam", "--cfg", "job", cwd=place)
    assert "torch.optim.NAdam" in said
    assert "decoy" not in said


def test_the_dashboard(installed, place):
    events = next((place / "outputs").rglob("events.out.tfevents.*"))
    shutil.copytree(events.parent, place / "outputs" / "runs" / "20260101-000000-abcd-adam")  # a second optimizer
    words = [str(installed / "linear-lab-dashboard"), "--port=0", "--no-browser"]
    with subprocess.Popen(words, cwd=place, env=ALONE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "TensorBoard on outputs; Ctrl-C ends it\n"
            address = process.stdout.readline().strip()
            assert "adam" in address  # a colour per optimizer of conf/
            with urllib.request.urlopen(address, timeout=60) as page:
                assert "TensorBoard" in page.read().decode()
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 0
        finally:
            process.kill()
