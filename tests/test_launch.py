"""Sweeps in other processes: they give the same bits, and keep their results when a process is killed."""

import importlib.util
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.types import HydraContext, RunMode
from omegaconf import OmegaConf
from runs import command, record, train

from linear_lab import UserError, cli, config
from linear_lab import train as entry
from linear_lab.cli import CONF, check_packages
from linear_lab.sweep import job, launchers

OVERRIDES = ("trainer.max_epochs=6", "logger=none", "data.batch_size=2")
SEEDS = range(3)
WORKERS = "each worker imports torch; test_sweep_faults kills processes that need not"
SAME = ("status", "steps", "seed", "metrics", "parameters", "best", "initial", "excess_loss", "optimum")
JOBLIB = ("launch=joblib", "hydra.launcher.n_jobs=2")
PATHS = os.pathsep.join(filter(None, (os.environ.get("PYTHONPATH"), str(Path(__file__).parent))))
# Ray keeps a token of the first cluster that ran here, and asks the next one for it
ENVIRONMENT = {"PYTHONPATH": PATHS, "COLUMNS": "200", "RAY_AUTH_MODE": "disabled"}
LAUNCHES = [
    pytest.param(JOBLIB, id="joblib"),
    pytest.param(("launch=slurm", "hydra/launcher=submitit_local"), id="slurm", marks=pytest.mark.cluster),
    pytest.param(("launch=ray", "+hydra.launcher.ray.init.num_cpus=2"), id="ray", marks=pytest.mark.cluster),
]


def start(root, launch, **doom):
    """Run a sweep over seeds in a new process."""
    given = {"_target_": "doomed.Doom", "seed": "${seed}", "folder": f"'{root}'"} | doom
    items = ",".join(f"{key}:{value}" for key, value in given.items())
    arguments = [f"output_root={root}", "name=study", f"+callbacks.doom={{{items}}}", *launch, *OVERRIDES]
    command = [sys.executable, "-m", "linear_lab.train", "-m", f"seed=range({len(SEEDS)})", *arguments]
    environment = os.environ | ENVIRONMENT
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def end(process):
    """Return exit code, output, and standard error without Python's messages about killed processes."""
    out, errors = process.communicate(timeout=300)
    errors = [line for line in errors.splitlines() if "resource_tracker" not in line and "warnings.warn" not in line]
    return process.returncode, out, errors


def wait_for(condition, process=None):
    limit = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < limit
        time.sleep(0.02)


def begun(root, seed):
    """Return the processes in which a job reached its third epoch."""
    file = root / f"begun-{seed}"
    return [int(line) for line in file.read_text().splitlines()] if file.exists() else []


def is_there(pid):
    try:
        return Path("/proc", str(pid), "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def bits(root):
    found = [json.loads(path.read_text()) for path in root.glob("sweeps/study/*/result.json")]
    return {one["seed"]: {key: one[key] for key in SAME} for one in found if one["status"] == "completed"}


@pytest.fixture(scope="session")
def alone(once):
    """The results of each job, trained alone in this process."""

    def each(folder):
        for seed in SEEDS:
            train(folder / str(seed), f"seed={seed}", *OVERRIDES)

    folder = once("alone", each)
    return {seed: {key: record(folder / str(seed))[key] for key in SAME} for seed in SEEDS}


@pytest.mark.slow(WORKERS)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_a_job_that_kills_its_process_takes_no_other_with_it(launch, alone, tmp_path):
    code, out, errors = end(start(tmp_path, launch, kills=0, raises=1))
    assert (code, errors) == (1, [])
    assert bits(tmp_path) == {2: alone[2]}
    assert "failed  sgd-seed=1: RuntimeError('doomed')" in out
    assert "interrupted  sgd-seed=0: its process ended unexpectedly (" in out
    (counts,) = (line for line in out.splitlines() if line.startswith("3 jobs: "))
    assert sorted(counts[len("3 jobs: ") :].split(", ")) == ["1 completed", "1 failed", "1 interrupted"]
    assert "-m linear_lab.train -m name=study 'seed=range(3)'" in out


@pytest.mark.slow(WORKERS)
@pytest.mark.parametrize("launch", LAUNCHES)
def test_kill_9_of_a_worker_and_of_the_sweep_loses_nothing(launch, alone, tmp_path):
    process = start(tmp_path, launch, waits=1)
    wait_for(lambda: begun(tmp_path, 1), process)
    if launch == JOBLIB:
        process.kill()
        process.communicate()
        workers = {pid for seed in SEEDS for pid in begun(tmp_path, seed)}
        wait_for(lambda: not any(map(is_there, workers)))
        assert 1 not in bits(tmp_path)
        process = start(tmp_path, launch, waits=1)
        wait_for(lambda: len(begun(tmp_path, 1)) == 2, process)
    os.kill(begun(tmp_path, 1)[-1], signal.SIGKILL)
    (tmp_path / "open").touch()
    code, out, errors = end(process)
    assert (code, errors) == (0, []), out
    assert bits(tmp_path) == alone
    assert len(begun(tmp_path, 1)) == (3 if launch == JOBLIB else 2)  # the job was trained again, once


@pytest.mark.cluster
def test_a_ray_cluster_by_its_address(alone, tmp_path):
    ray = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
    ray += ["--node-ip-address=127.0.0.1", "--port=6399", "--include-dashboard=false", "--disable-usage-stats"]
    with (tmp_path / "head.log").open("w") as log:
        head = subprocess.Popen(ray, stdout=log, stderr=log, env=os.environ | ENVIRONMENT)
    try:
        wait_for(lambda: "Ray runtime started" in (tmp_path / "head.log").read_text(), head)
        code, out, errors = end(start(tmp_path, ("launch=ray", "hydra.launcher.ray.init.address=127.0.0.1:6399")))
    finally:
        head.terminate()
        head.wait()
    assert (code, errors) == (0, []), out
    assert bits(tmp_path) == alone


def test_without_slurm_the_message_says_so(tmp_path):
    environment = os.environ | {"PATH": str(tmp_path)}
    command = [sys.executable, "-m", "linear_lab.train", "-m", f"output_root={tmp_path}", "launch=slurm", "seed=0,1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.startswith("error: launch: the launcher started no job (RuntimeError: Could not detect")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("launch", ["joblib", "slurm", "ray"])
def test_a_missing_extra_is_named_with_its_install_command(launch, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        UserError, match=rf"launch={launch}: a package is missing; run .* -m pip install -e '\.\[{launch}\]'"
    ):
        check_packages(["-m", f"launch={launch}"])
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    check_packages(["-m", f"launch={launch}"])


@pytest.mark.parametrize("launch", ["local", "joblib", "slurm", pytest.param("ray", marks=pytest.mark.cluster)])
def test_each_launch_composes_and_says_what_a_job_wants(launch):
    cli.register_resolvers()

    def wanted(*overrides):
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            cfg = hydra.compose("train", [f"launch={launch}", *overrides], return_hydra_config=True)
        launcher = cfg.hydra.launcher
        return {
            "local": lambda: launcher._target_.rpartition(".")[2],
            "joblib": lambda: launcher.n_jobs,
            "slurm": lambda: launcher.gpus_per_node,
            "ray": lambda: launcher.ray.remote.num_gpus,
        }[launch]()

    cores = len(os.sched_getaffinity(0))
    assert wanted() == {"local": "LocalLauncher", "joblib": cores}.get(launch)
    if launch in ("slurm", "ray"):
        assert wanted("trainer=gpu", "trainer.devices=2") == 2


@pytest.mark.slow("like test_jobs_whose_names_would_be_alike_have_their_fingerprints_in_them")
def test_local_gives_each_job_the_config_that_hydra_would(monkeypatch):
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        typed = ["hydra.verbose=true", "hydra.job.config.override_dirname.exclude_keys=[seed]", "optimizer=adam"]
        whole = loader.load_configuration("train", typed, run_mode=RunMode.MULTIRUN)
        ours, loaded = launchers.LocalLauncher(), []
        ours.setup(hydra_context=HydraContext(loader, callbacks=None), task_function=None, config=whole)
        by_hydra = loader.load_sweep_config
        monkeypatch.setattr(loader, "load_sweep_config", lambda *given: (loaded.append(1), by_hydra(*given))[1])
        for seed, lr in ((1, 0.1), (2, "null"), (3, "'a, =b'")):
            for experiment in ("debug", "notebook"):  # debug changes Hydra's config
                typed = [
                    f"seed={seed}",
                    f"experiment={experiment}",
                    f"optimizer.lr={lr}",
                    "+note=1",
                    "model={bias:false}",
                ]
                typed += ["name=x", "hydra.sweep.dir=y", f"hydra.sweep.subdir='{seed}=z'", "hydra.output_subdir=null"]
                found, expected = ours.compose(typed), by_hydra(whole, typed)
                assert repr(found) == repr(expected)
                assert OmegaConf.get_type(found, "hydra") is OmegaConf.get_type(expected, "hydra")
                assert found._get_flag("struct") == expected._get_flag("struct")
    assert len(loaded) == 2  # one per experiment


@pytest.mark.slow("like test_without_a_checkout_help_explains_the_words")
def test_local_under_the_sweeper_of_hydra(tmp_path):
    arguments = ("hydra/sweeper=basic", "name=study", "trainer.max_epochs=2", "logger=none", "optimum=false")
    code, _, errors = command(entry, "-m", f"output_root={tmp_path}", *arguments, "seed=3,4")
    assert (code, errors) == (0, "")
    assert [record(tmp_path / "sweeps/study" / number)["seed"] for number in "01"] == [3, 4]
    node = OmegaConf.load(tmp_path / "sweeps/study/1/.hydra/hydra.yaml").hydra
    assert (node.job.num, node.job.id) == (1, "1")
    assert node.overrides.task[-1] == "seed=4"


def test_workers_are_as_many_as_cores_or_gpus(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [config.workers(name) for name in ("cpu", "gpu", "auto")] == [3, 4, 4]
    assert [config.gpus(name, 2) for name in ("cpu", "gpu", "cuda")] == [None, 2, 2]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert [config.workers(name) for name in ("gpu", "auto")] == [1, 3]  # the job reports what is wrong


def lease(connection):
    """Lock one of two GPUs, send its name, and hold it until told to end."""
    torch.cuda.device_count = lambda: 2
    try:
        connection.send(job.leased_gpu())
    except UserError as error:
        connection.send(str(error))
    connection.recv()


@pytest.mark.parametrize("visible", [None, "3,GPU-8a/b"])
def test_each_process_gets_a_gpu_of_its_own(visible, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    names = (visible or "0,1").split(",")
    context = multiprocessing.get_context("fork")
    held = []

    def another():
        ours, theirs = context.Pipe()
        process = context.Process(target=lease, args=(theirs,), daemon=True)
        process.start()
        held.append((process, ours))
        return ours.recv()

    assert [another(), another()] == names
    assert another() == "launch=joblib: all 2 GPUs are in use; try hydra.launcher.n_jobs=2"
    held[0][0].kill()
    held[0][0].join()
    assert another() == names[0]
    for process, ours in held[1:]:
        ours.send(None)
        process.join()
