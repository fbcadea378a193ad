"""Many runs trained as one stacked model: the same numbers, files and words as trained one after the other."""

import io
import json
import os
import shutil
import signal
import time
from collections import OrderedDict

import hydra
import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from runs import command, events, record, resume, scalars, train
from tensorboard.summary.writer.record_writer import RecordWriter
from test_dashboard import cells, status
from test_sweep import end, fork
from torch import nn
from torch.optim import SGD, Adam, AdamW, RMSprop

from linear_lab import CONF, UserError, cli, files
from linear_lab import train as entry
from linear_lab.dashboard import hparams
from linear_lab.dashboard.events import records
from linear_lab.dashboard.logger import event_files
from linear_lab.data import SyntheticData
from linear_lab.evaluation import evaluate
from linear_lab.run import Run
from linear_lab.stacked import pickling, recorder, training
from linear_lab.stacked.leaving import as_yaml
from linear_lab.stacked.losses import stacked_loss
from linear_lab.stacked.optimizers import StackedOptimizer, own_state
from linear_lab.sweep import page
from linear_lab.sweep.stacking import obstacle
from linear_lab.sweep.stacks import has_begun

SPEED = "time/steps_per_second"
OPTIMIZERS = [
    (SGD, [{"lr": 0.1}, {"lr": 0.05, "momentum": 0.9}]),
    (SGD, [{"lr": 0.01, "momentum": 0.5, "weight_decay": 0.1, "dampening": 0.2}, {"lr": 0.1, "dampening": 0.5}]),
    (SGD, [{"lr": 0.1, "momentum": m, "nesterov": True, "weight_decay": decay} for m, decay in ((0.9, 0), (0.5, 0.3))]),
    (Adam, [{"lr": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.1, "eps": 1e-5}]),
    (Adam, [{"lr": 0.1, "amsgrad": True, "maximize": True}, {"lr": 0.01, "amsgrad": True, "maximize": True}]),
    (AdamW, [{"lr": 0.1, "weight_decay": 0.1}, {"lr": 0.01, "betas": (0.5, 0.9), "weight_decay": 0.0}]),
    (RMSprop, [{"lr": 0.01}, {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.1}]),
    (RMSprop, [{"lr": 0.01, "centered": True}, {"lr": 0.02, "centered": True, "alpha": 0.5}]),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("kind", "numbers"), OPTIMIZERS)
def test_optimizers_take_the_steps_of_torch(kind, numbers, dtype):
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(len(numbers), 3, 2, dtype=dtype, generator=generator)
    alone = [nn.Parameter(values.clone()) for values in start]
    optimizers = [kind([parameter], **own) for parameter, own in zip(alone, numbers, strict=True)]
    together = nn.Parameter(start.clone())
    stacked = StackedOptimizer([together], [kind([nn.Parameter(start[0].clone())], **own) for own in numbers])
    for step in range(500):
        noise = torch.randn(start.shape, dtype=dtype, generator=generator)
        for parameter, optimizer, values in zip(alone, optimizers, noise, strict=True):
            parameter.grad = 2 * parameter.detach() + parameter.detach().sin() + values
            optimizer.step()
            if step == 250:
                optimizer.param_groups[0]["lr"] /= 2
        together.grad = 2 * together.detach() + together.detach().sin() + noise
        stacked.step()
        if step == 250:
            for own in stacked.own:
                own.param_groups[0]["lr"] /= 2
            stacked.read_rates()
    exact = {} if dtype == torch.float32 else {"rtol": 1e-12, "atol": 1e-14}  # powers of beta round in another way
    for job, (parameter, optimizer) in enumerate(zip(alone, optimizers, strict=True)):
        assert torch.allclose(together[job], parameter, **exact) if exact else torch.equal(together[job], parameter)
        tensors = [{name: values[job] for name, values in stacked.tensors()[0].items()}]
        kept, wanted = own_state(stacked.own[job], 500, tensors), optimizer.state_dict()
        assert kept["param_groups"] == wanted["param_groups"]
        assert [*kept["state"].get(0, {})] == [*wanted["state"].get(0, {})]
        for name, value in kept["state"].get(0, {}).items():
            torch.testing.assert_close(value, wanted["state"][0][name])


@pytest.mark.parametrize(
    ("loss", "specs"),
    [
        (nn.MSELoss, [{}, {}]),
        (nn.L1Loss, [{}, {}]),
        (nn.HuberLoss, [{"delta": 0.3}, {"delta": 2.0}, {}]),
        (nn.CrossEntropyLoss, [{}, {"label_smoothing": 0.2}]),
    ],
)
def test_losses_are_those_of_torch(loss, specs):
    generator = torch.Generator().manual_seed(0)
    y_hat = torch.randn(len(specs), 3, 7, dtype=torch.float64, generator=generator)
    y = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    own = torch.randn(len(specs), 3, 7, dtype=torch.float64, generator=generator)
    if loss is nn.CrossEntropyLoss:
        y, own = y[0].abs().long() % 3, own[:, 0].abs().long() % 3
    stacked = stacked_loss([{"_target_": f"torch.nn.{loss.__name__}", **spec} for spec in specs])

    def alone(job, targets):
        return loss(**specs[job])(y_hat[job].T, targets.T if targets.is_floating_point() else targets)

    for shared, targets in ((True, y), (False, own)):
        wanted = torch.stack([alone(job, targets if shared else targets[job]) for job in range(len(specs))])
        torch.testing.assert_close(stacked(y_hat, targets), wanted, rtol=1e-12, atol=0)


@given(st.lists(st.integers(1, 60), max_size=60), st.integers(0, 2**32 - 1))
@settings(max_examples=30)
def test_records_are_those_of_tensorboard(lengths, seed):
    random = np.random.default_rng(seed)
    payloads = [random.bytes(1 + length % 3 * 20) for length in lengths]
    file = io.BytesIO()
    writer = RecordWriter(file)
    for payload in payloads:
        writer.write(payload)
    assert b"".join(records(payloads)) == file.getvalue()


@given(
    st.lists(
        st.one_of(
            st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs"))),
            st.from_regex(r"[a-z.]+=[\w.+:{} #-]*"),
        )
    )
)
def test_overrides_are_written_as_yaml(items):
    assert as_yaml(items).decode() == yaml.safe_dump(items, allow_unicode=True, width=10**9)


NUMBERS = st.lists(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(width=64)), min_size=5, max_size=5)


def tree(numbers, text, second):
    """A tree as a checkpoint is one, with two tensors in one piece of memory."""
    memory = torch.arange(6.0)
    tensors = memory[:2], (memory if second else torch.ones(6))[2:].view(2, 2)
    return {"a": numbers[:2], "b": {text: (numbers[2], [numbers[3:], []]), 1: {}}, "c": (*tensors, numbers)}


def loaded_again(obj):
    """Save as stacks do; what is loaded, as text."""
    content = io.BytesIO()
    torch.save(obj, content, pickle_module=pickling)
    content.seek(0)
    return repr(torch.load(content, weights_only=True))


@given(NUMBERS, NUMBERS, st.text(), st.booleans(), st.booleans())
def test_checkpoints_are_filled_in_as_they_are_pickled(first, other, text, second, third):
    for numbers, shared in ((first, second), (other, second), (other, third)):
        one = tree(numbers, text, shared)
        assert loaded_again(one) == repr(one)


def test_what_no_template_can_have_is_pickled_whole(monkeypatch):
    monkeypatch.setattr(pickling.Pickler, "templates", {})
    for number in (1.0, 2.0):
        like_a_blank = {"values": [number, (b"G" + pickling.BLANK + b"\0\0\0").decode()]}
        assert loaded_again(like_a_blank) == repr(like_a_blank)
        unknown = {"values": [number, OrderedDict(a=number)]}
        assert loaded_again(unknown) == repr(unknown)
    assert [*pickling.Pickler.templates.values()] == [None]
    monkeypatch.setattr(pickling.Pickler, "template", lambda *_: 1 / 0)  # only once for each shape
    assert loaded_again(like_a_blank) == repr(like_a_blank)


def sweep(monkeypatch, folder, *overrides, launch="stacked", name="study"):
    """Sweep in a folder as the working one; its exit code and what it said."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    code, out, errors = command(entry, "-m", f"launch={launch}", f"name={name}", *overrides)
    return code, errors + out


@pytest.fixture
def without_page(monkeypatch):
    """Leave out the pictures of the sweep's page, which take longest."""
    monkeypatch.setattr(page, "write_page", lambda *_, **__: None)


def close(one, other, tolerance, where=""):
    """Assert that two trees of containers, numbers and tensors are the same, numbers within a relative tolerance."""
    if isinstance(one, torch.Tensor) and one.shape == other.shape:
        scale = max(one.abs().max().item(), 1e-3) if one.numel() else 1.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * scale, equal_nan=True)
    elif isinstance(one, dict):
        assert [*one] == [*other] or {*one} == {*other}, where
        for key in one:
            close(one[key], other[key], tolerance, f"{where}/{key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for number, (value, wanted) in enumerate(zip(one, other, strict=True)):
            close(value, wanted, tolerance, f"{where}/{number}")
    elif isinstance(one, float) and isinstance(other, float):
        assert one == pytest.approx(other, rel=tolerance, abs=tolerance * 1e-3, nan_ok=True), where
    else:
        assert one == other or (one != one and other != other), f"{where}: {one} {other}"


CONVERGED = "sgd, converged"  # to where rounding, another one on each processor, decides gradients and the best step
CASES = {
    "sgd": ("optimizer.momentum=0,0.9", "optimizer.lr=0.0002,0.0005", "seed=0,1", "optimizer.weight_decay=0,0.1",
        "data=synthetic", "data.samples=100"),
    CONVERGED: ("optimizer.momentum=0,0.9", "optimizer.lr=0.01,0.1", "seed=0,1", "optimizer.weight_decay=0,0.1"),
    "nesterov": ("optimizer.nesterov=true", "optimizer.momentum=0.5,0.9", "data.batch_size=2", "seed=1,2"),
    "adam": ("optimizer=adam", "optimizer.lr=0.01,0.1", "data=toy_classes", "loss=cross_entropy", "data.batch_size=32",
        "loss.label_smoothing=0,0.1", "metric=val/accuracy", "mode=max"),
    "a reference": ("optimizer=adam", "optimizer.betas=[0.8,'${optimizer.lr}']", "optimizer.lr=0.5,0.9"),
    "adamw": ("optimizer=adamw", "data=table", "data.path=rows.csv", "data.y=[y]", "optimizer.lr=0.01,0.1",
        "data.batch_size=20", "seed=0,1"),
    "double": ("optimizer=adam,sgd", "trainer.precision=64-true", "optimizer.lr=0.01,0.02", "seed=0,1",
        "data.batch_size=3"),
    "diverging": ("optimizer.lr=0.05,0.12,1,100,1e30", "logger.pictures=false"),
    "diverging at once": ("model.weight=1e30,0.5", "optimizer.lr=0.05,1", "optimizer=adam,sgd"),
    "huber": ("optimizer=rmsprop", "loss=huber", "loss.delta=0.5,2", "optimizer.momentum=0,0.5", "optimizer.lr=0.01"),
    "cosine": ("scheduler=cosine", "scheduler.eta_min=0,0.001", "optimizer.lr=0.02,0.05,0.2"),
    "plateau": ("optimizer=adam", "scheduler=plateau", "scheduler.patience=0", "optimizer.lr=0.5,1", "seed=0,1",
        "trainer.check_val_every_n_epoch=7"),
    "train alone": ("data=synthetic", "data.fractions=[1,0,0]", "optimizer.lr=0.01,0.1", "seed=0,1"),
    "many": ("data=synthetic", "data.samples=100", "data.features=5", "data.targets=4", "model.weight=0.5,null",
        "model.bias=false", "trainer.max_steps=33", "scheduler=step", "scheduler.step_size=5,7", "logger=none"),
}  # fmt: skip
EPOCHS = {"sgd": 500, CONVERGED: 500, "adam": 100, "double": 160}


@pytest.mark.parametrize("case", CASES)
def test_agrees_with_single_training(case, monkeypatch, tmp_path, without_page):
    random = np.random.default_rng(0)
    x = random.normal(5, 3, (60, 3))
    rows = np.c_[x, x @ [1, 2, -3] + 4 + random.normal(0, 0.1, 60)]
    np.savetxt(tmp_path / "rows.csv", rows, delimiter=",", header="a,b,c,y", comments="")
    path = str(tmp_path / "rows.csv")
    overrides = (*(o.replace("rows.csv", path) for o in CASES[case]), f"trainer.max_epochs={EPOCHS.get(case, 60)}")
    for launch in ("stacked", "local"):
        pictures = ("hydra.launcher.pictures=9",) if (case, launch) == ("huber", "stacked") else ()
        code, said = sweep(monkeypatch, tmp_path / launch, *overrides, *pictures, launch=launch)
        assert code == 0, said
        assert "one by one" not in said
    folders = [path.parent for path in sorted(tmp_path.glob("stacked/outputs/sweeps/study/*/result.json"))]
    assert len(folders) == len(list(tmp_path.glob("local/outputs/sweeps/study/*/result.json"))) >= 2
    tolerance = 1e-10 if case == "double" else 1e-5
    for folder in folders:
        alone = tmp_path / "local" / folder.relative_to(tmp_path / "stacked")
        ours, theirs = record(folder), record(alone)
        assert ours.pop("stack")["jobs"] >= 2
        for found in (ours, theirs):
            del found["seconds"]
            if case == CONVERGED:
                del found["best"]["step"]
        if ours["status"] == "completed":
            agree = [torch.tensor(found["parameters"]["weight"], dtype=torch.float64) for found in (ours, theirs)]
            assert (agree[0] - agree[1]).norm() <= tolerance * agree[1].norm()
        close(ours, theirs, 10 * tolerance, "record")
        for kind in ("best", "last") if case != CONVERGED else ():
            files = [where / "checkpoints" / f"{kind}.ckpt" for where in (folder, alone)]
            assert files[0].exists() == files[1].exists()
            if files[0].exists():
                assert files[0].stat().st_size <= files[1].stat().st_size
                ours, theirs = (torch.load(file, weights_only=True) for file in files)
                for found in (ours, theirs):
                    found["callbacks"].get("Dashboard", {}).pop("drawn", None)
                close(ours, theirs, 100 * tolerance, kind)
        assert (folder / ".hydra/config.yaml").read_bytes() == (alone / ".hydra/config.yaml").read_bytes()
        if "logger=none" not in overrides:
            curves = [scalars(where) for where in (folder, alone)]
            for found in curves:
                found.pop(SPEED, None)
                if case == CONVERGED:
                    del found["optim/grad_norm"], found["train/log10_excess"]
            close(curves[0], curves[1], 100 * tolerance, "curves")
            tags = [events(where).Tags() for where in (folder, alone)]
            for plugin in ("tensors", "graph"):
                assert tags[0][plugin] == tags[1][plugin]
            texts = [events(where).Tensors("config/text_summary")[0].tensor_proto for where in (folder, alone)]
            assert texts[0] == texts[1]
            assert cells(folder) == cells(alone)
            if case == "huber":
                ours, theirs = (events(where).Histograms("train/gradient_norms") for where in (folder, alone))
                assert [one.step for one in ours] == [one.step for one in theirs]
                norms = [[one.histogram_value.max for one in found] for found in (ours, theirs)]
                assert norms[0] == pytest.approx(norms[1], rel=1e-4)


GRID = ("optimizer=sgd,adam", "optimizer.lr=0.05,0.1", "seed=0,1", "trainer.max_epochs=30", "data.batch_size=2")
ALIKE = ("status", "error", "seed", "steps", "metrics", "parameters", "best", "initial", "first_step", "excess_loss")


def jobs(folder):
    """Records of a sweep's jobs less what time decides, and the bits of their checkpoints, by name."""
    found = {}
    for path in sorted(folder.glob("outputs/sweeps/study/*/result.json")):
        saved = [torch.load(path.parent / f"checkpoints/{kind}.ckpt", weights_only=True) for kind in ("best", "last")]
        state = [str([one["state_dict"], one["optimizer_states"], one["callbacks"]]) for one in saved]
        found[path.parent.name] = {key: record(path.parent)[key] for key in ALIKE}, state
    return found


@pytest.fixture(scope="module")
def stacked(once, tmp_path_factory):
    """The folder of a sweep that was trained as stacks, with its page and pictures of the best two jobs."""

    def train_stacks(folder):
        folder.mkdir()
        with pytest.MonkeyPatch.context() as patch:
            code, said = sweep(patch, folder, *GRID, "hydra.launcher.pictures=2")
        assert code == 0, said

    return once("stacked", train_stacks)


def test_the_sweep_is_like_any_other(stacked, monkeypatch):
    folder = stacked / "outputs/sweeps/study"
    assert len(jobs(stacked)) == 8
    assert not (folder / "_stacks").exists()
    table = (folder / "leaderboard.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in table] == ["rank", *map(str, range(1, 9))]
    best = [row.split(",")[1] for row in table[1:3]]
    tags = {path.parent.name: events(path.parent).Tags() for path in folder.glob("*/result.json")}
    assert {name for name, kinds in tags.items() if kinds["images"]} == {*best}
    assert {image.step for image in events(folder / best[0]).Images("pictures/fit")} == {0, 1, 3, 10, 30, 60}
    assert tags[best[0]]["histograms"] == ["train/residuals", "train/gradient_norms"]
    assert len(event_files(folder / best[0])) == 2  # pictures have a file of their own, also within the same second
    assert all("train/loss" in kinds["scalars"] for kinds in tags.values())
    assert {"sweep/lr", "sweep/paths"} <= {*events(folder / "_sweep").Tags()["images"]}
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")}
    code, said = sweep(monkeypatch, stacked, *GRID)  # nothing is left to do
    assert code == 0, said
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/result.json")} == before


def test_a_job_goes_on_alone_and_is_evaluated(stacked, tmp_path):
    name = "adam-lr=0.1-seed=1"
    folder = tmp_path / name
    shutil.copytree(stacked / "outputs/sweeps/study" / name, folder)
    assert record(folder)["metrics"] == pytest.approx(evaluate(str(folder), "last"), rel=1e-6)
    found = resume(folder, "trainer.max_epochs=45")
    overrides = ("optimizer=adam", "optimizer.lr=0.1", "seed=1", "data.batch_size=2", "trainer.max_epochs=45")
    wanted = train(tmp_path / "alone", *overrides)
    assert found["steps"] == wanted["steps"] == 90
    close(found["parameters"], wanted["parameters"], 1e-4)
    steps = [[step for step, _ in scalars(where)["train/loss"]] for where in (folder, tmp_path / "alone")]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("more", [(), ("optimizer.lr=0.02,0.05,0.1",)])
@pytest.mark.parametrize("moment", [83, 80])  # steps: in the middle of an epoch, and where a validation follows
def test_an_interrupted_stack_goes_on(moment, more, stacked, monkeypatch, tmp_path, without_page):
    batch_end, seen = recorder.StackRecorder.on_train_batch_end, []

    def interrupting(self, trainer, *arguments):
        batch_end(self, trainer, *arguments)
        seen.append(trainer.global_step)
        if len(seen) == moment:  # in the second stack
            time.sleep(0.5)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(recorder.StackRecorder, "on_train_batch_end", interrupting)
    code, said = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 143, said
    assert "go on" in said
    folder = tmp_path / "outputs/sweeps/study"
    drawn = [path.parent.name for path in folder.glob("*/result.json") if events(path.parent).Tags()["images"]]
    assert [name[:4] for name in drawn] == ["sgd-"]  # the best of what has ended
    for path in folder.glob("adam-*"):  # as any run that is interrupted
        assert cells(path) == cells(stacked / "outputs/sweeps/study" / path.name)
        assert hparams.ends(path) == []
        assert Run.open(str(path), "resume").record["status"] == "interrupted"
    assert {path.parent.name[:4]: record(path.parent)["status"] for path in folder.glob("*/result.json")} == {
        "sgd-": "completed", "adam": "interrupted"
    }  # fmt: skip
    code, said = sweep(monkeypatch, tmp_path, *GRID, *more, "hydra.launcher.pictures=0")
    assert code == 0, said
    assert len(seen) == (60 + 60) * (1 + len(more))  # no step was taken twice
    wanted, found = jobs(stacked), jobs(tmp_path)
    assert len(found) == 8 + 4 * len(more)
    assert {name: found[name] for name in wanted} == wanted
    assert all(record(path.parent)["stack"]["seconds"] > 0.5 for path in folder.glob("adam-lr=0.1*/result.json"))
    assert not (folder / "_stacks").exists()


def test_another_launch_ends_what_a_stack_has_begun(stacked, monkeypatch, tmp_path, without_page):
    batch_end = recorder.StackRecorder.on_train_batch_end

    def interrupting(self, trainer, *arguments):
        batch_end(self, trainer, *arguments)
        if trainer.global_step == 33:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(recorder.StackRecorder, "on_train_batch_end", interrupting)
    few = ("optimizer.lr=0.05,0.1", "trainer.max_epochs=30", "data.batch_size=2", "logger.pictures=false")
    code, said = sweep(monkeypatch, tmp_path, *few)
    assert code == 130, said
    folder = tmp_path / "outputs/sweeps/study"
    assert list(folder.glob("_stacks/*/checkpoints/last.ckpt"))
    code, said = sweep(monkeypatch, tmp_path, *few, launch="local")
    assert code == 0, said
    assert not (folder / "_stacks").exists()
    names = {path.parent.name for path in folder.glob("*/result.json")}
    assert names == {"sgd-lr=0.05", "sgd-lr=0.1"}
    assert not any(has_begun(folder / name) for name in names)  # not again
    assert {status(folder / name) for name in names} == {"SUCCESS"}


@pytest.mark.parametrize("moment", ["write_all", "replace_all", "train"])
def test_a_killed_stack_is_trained_again(moment, stacked, monkeypatch, tmp_path, without_page):
    def kill():
        os.kill(os.getpid(), signal.SIGKILL)

    def run():
        with pytest.MonkeyPatch.context() as patch:
            if moment == "train":
                patch.setattr(recorder, "SAVE_EVERY", 0.0)  # a checkpoint after each validation
                batch_start = recorder.StackRecorder.on_train_batch_start

                def killed(self, trainer, *rest):
                    if trainer.global_step == 33:
                        kill()
                    batch_start(self, trainer, *rest)

                patch.setattr(recorder.StackRecorder, "on_train_batch_start", killed)
            else:
                original = getattr(files, moment)

                def half(contents):
                    if any("checkpoints" in str(path) or moment == "replace_all" for path in contents):
                        original(dict([*contents.items()][: len(contents) // 2]))
                        kill()
                    original(contents)

                patch.setattr(files, moment, half)
            return sweep(patch, tmp_path, *GRID, "hydra.launcher.pictures=0")[0]

    assert end(fork(run)) == -signal.SIGKILL
    if moment == "train":
        assert list(tmp_path.glob("outputs/sweeps/study/_stacks/*/checkpoints/last.ckpt"))
    code, said = sweep(monkeypatch, tmp_path, *GRID, "hydra.launcher.pictures=0")
    assert code == 0, said
    if moment == "replace_all":  # half of a stack had ended: the other half is a smaller one, which rounds otherwise
        for name, (found, _) in jobs(tmp_path).items():
            close(found, jobs(stacked)[name][0], 1e-5, name)
    else:
        assert jobs(tmp_path) == jobs(stacked)


def test_small_stacks_give_the_same(stacked, monkeypatch, tmp_path, without_page):
    code, said = sweep(monkeypatch, tmp_path, *GRID, "hydra.launcher.jobs=3", "hydra.launcher.pictures=0")
    assert code == 0, said
    sizes = [record(path.parent)["stack"]["jobs"] for path in tmp_path.glob("outputs/sweeps/study/*/result.json")]
    assert sorted(sizes) == [1, 1, 3, 3, 3, 3, 3, 3]
    for name, (found, _) in jobs(tmp_path).items():
        close(found, jobs(stacked)[name][0], 1e-5, name)


def test_what_cannot_be_stacked_runs_alone_and_says_why(monkeypatch, tmp_path, without_page):
    overrides = ("optimizer=sgd,adam,lbfgs", "seed=0,1", "trainer.max_epochs=4", "logger=none")
    code, said = sweep(monkeypatch, tmp_path, *overrides)
    assert code == 0, said
    assert "one by one  2 jobs: optimizer is linear_lab.models.lbfgs.LBFGS" in said
    folder = tmp_path / "outputs/sweeps/study"
    assert "stack" not in record(folder / "lbfgs-seed=0")
    assert (
        "not stacked: optimizer is linear_lab.models.lbfgs.LBFGS\n"
        in (folder / "lbfgs-seed=0" / "train.log").read_text()
    )
    assert "stack" in record(folder / "sgd-seed=0")
    assert "with 1 others as one stacked model" in (folder / "sgd-seed=0" / "train.log").read_text()
    wrong = ("optimizer.lr=0.1,-1,0.05", "trainer.max_epochs=4", "logger=none")
    code, said = sweep(monkeypatch, tmp_path, *wrong, name="wrong")
    assert code == 1
    assert "failed  sgd-lr=-1: optimizer: lr must be a positive number, got -1" in said
    assert "3 jobs: 2 completed, 1 failed" in said


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("callbacks=early_stopping", "callbacks.early_stopping"),
        ("trainer.gradient_clip_val=1", "trainer.gradient_clip_val=1"),
        ("trainer.accumulate_grad_batches=2", "trainer.accumulate_grad_batches=2"),
        ("trainer.devices=2", "trainer.devices=2"),
        ("trainer.precision=16-mixed", "trainer.precision=16-mixed"),
        ("console.steps=2", "console.steps=2"),
        ("+optimizer.foreach=true", "optimizer.foreach"),
        ("+loss.weight=[1,2]", "loss.weight"),
        ("loss._target_=torch.nn.SmoothL1Loss", "loss is torch.nn.SmoothL1Loss"),
        ("seed=-1", "seed=-1"),
        ("optimizer.nesterov=true", "Nesterov momentum requires a momentum and zero dampening"),
        ("trainer.strategy=ddp", "trainer.strategy=ddp"),
        ("scheduler=plateau", None),
        ("trainer.max_steps=3", None),
        ("data.batch_size=2", None),
        ("logger=none", None),
    ],
)
def test_each_obstacle_is_named(override, reason):
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = hydra.compose("train", [override])
    assert obstacle(OmegaConf.to_container(cfg, resolve=True)) == reason


@pytest.mark.parametrize(
    ("good", "bad", "said"),
    [
        ("loss.delta=0.5,2", "loss.delta=-1", "huber_loss does not support non-positive values for delta"),
        ("scheduler.step_size=5,10", "scheduler.step_size=0", "step_size must be a whole number"),
        ("model.weight=1,2", "model.weight=[[1,2]]", "weight has shape (1, 2)"),
        ("data.order_seed=0,1", "data.order_seed=abc", "order_seed"),
        ("trainer.max_epochs=4,4", "trainer.max_epochs=0", None),
    ],
)
def test_a_bad_job_fails_alone(good, bad, said, monkeypatch, tmp_path, without_page):
    groups = ["loss=huber"] if "loss" in good else ["scheduler=step"] if "step" in good else []
    values = f"{good},{bad.partition('=')[2]}"
    epochs = [] if "epochs" in good else ["trainer.max_epochs=4"]
    overrides = [*groups, values, "seed=0,1", *epochs, "logger=none", "data.batch_size=2"]
    code, told = sweep(monkeypatch, tmp_path, *overrides)
    assert code == (1 if said else 0), told
    found = [record(path.parent) for path in tmp_path.glob("outputs/sweeps/study/*/result.json")]
    stacked = [one for one in found if "stack" in one]
    assert all(one["status"] == "completed" and one["stack"]["jobs"] == len(stacked) for one in stacked)
    assert len(stacked) == len(found) - 2
    if said:
        wrong = [one["error"] for one in found if one["status"] == "failed"]
        assert len(wrong) == 2
        assert all(said in error for error in wrong), wrong


def test_other_data_do_not_take_up_a_checkpoint(monkeypatch, tmp_path, without_page):
    path = tmp_path / "rows.csv"
    overrides = ("data=table", f"data.path={path}", "data.y=[y]", "seed=0,1", "trainer.max_epochs=30", "logger=none")

    def write_rows(slope):
        path.write_text("x,y\n" + "".join(f"{x},{slope * x}\n" for x in range(20)))

    start = recorder.StackRecorder.on_train_batch_start

    def interrupting(self, trainer, *rest):
        if trainer.global_step == 22:
            os.kill(os.getpid(), signal.SIGTERM)
        start(self, trainer, *rest)

    write_rows(2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(recorder.StackRecorder, "on_train_batch_start", interrupting)
        assert sweep(monkeypatch, tmp_path, *overrides)[0] == 143
    write_rows(-1)
    code, told = sweep(monkeypatch, tmp_path, *overrides)
    assert code == 0, told
    assert sweep(monkeypatch, tmp_path, *overrides, name="anew")[0] == 0
    for seed in (0, 1):
        one, other = (record(tmp_path / f"outputs/sweeps/{name}/sgd-seed={seed}") for name in ("study", "anew"))
        assert {key: one[key] for key in ALIKE} == {key: other[key] for key in ALIKE}


def test_a_full_disk_ends_the_sweep_by_one_message(monkeypatch, tmp_path, without_page):
    def full(contents):
        raise UserError("cannot write somewhere: No space left on device; make room")

    monkeypatch.setattr(files, "write_all", full)
    code, told = sweep(monkeypatch, tmp_path, *GRID)
    assert code == 1
    assert told.startswith("error: cannot write somewhere: No space left on device; make room")


@pytest.mark.parametrize("wrong", ["jobs=0", "memory=no", "pictures=-1"])
def test_what_the_launcher_refuses(wrong, monkeypatch, tmp_path):
    code, said = sweep(monkeypatch, tmp_path, "seed=0,1", f"hydra.launcher.{wrong}")
    assert code == 1
    assert f"error: hydra.launcher.{wrong}: must be a whole number of at least" in said


def test_memory_bounds_a_stack():
    data = SyntheticData(samples=10_000, features=3)
    data.setup()
    config = {"trainer": {"max_epochs": 100, "check_val_every_n_epoch": 10}}
    small, large = (training.capacity(data, config, size << 20) for size in (1, 100))
    assert 1 <= small < large
    assert large == pytest.approx(100 * small, rel=0.5)
    assert training.capacity(data, config, 1) == 1


def test_data_that_are_not_there_cost_one_message_a_job(monkeypatch, tmp_path, without_page):
    grid = ("data=table", "data.path=no.csv", "data.y=[y]", "seed=0,1")
    code, said = sweep(monkeypatch, tmp_path, *grid)
    assert code == 1
    assert said.count("no.csv: not there; check the path") >= 2
    paths = [*tmp_path.glob("outputs/sweeps/study/*/result.json")]
    assert [record(path.parent)["status"] for path in paths] == ["failed", "failed"]
    (tmp_path / "no.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    code, said = sweep(monkeypatch, tmp_path, *grid, "trainer.max_epochs=10", "overwrite=true")
    assert code == 0, said
    for path in paths:  # the new one says what came of it, behind what was wrong before
        lines = (path.parent / "train.log").read_text().splitlines()
        assert ["not there" in lines[0], "completed; step 10" in lines[-1]] == [True, True]


def test_fail_fast_ends_a_stack_at_its_first_job(monkeypatch, tmp_path, without_page):
    code, said = sweep(
        monkeypatch, tmp_path, "data=table", "data.path=no.csv", "data.y=[y]", "seed=range(4)", "fail_fast=true"
    )
    assert code == 1
    assert [path.parent.name for path in tmp_path.glob("outputs/sweeps/study/*/result.json")] == ["sgd-seed=0"]
    assert "not there" in said


def test_trials_that_a_search_draws_together_are_stacked(monkeypatch, tmp_path, without_page):
    search = ("sweep=search", "optimizer=sgd", "hydra.sweeper.trials=6", "hydra.sweeper.at_once=3")
    code, said = sweep(monkeypatch, tmp_path, *search, "hydra.sweeper.prune=false", "trainer.max_epochs=5")
    assert code == 0, said
    sizes = [record(path.parent)["stack"]["jobs"] for path in tmp_path.glob("outputs/sweeps/study/*/result.json")]
    assert sizes == [3] * 6


def test_a_stack_of_another_command_is_left_alone(monkeypatch, tmp_path, without_page):
    folder = tmp_path / "outputs/sweeps/study"
    order = folder / "_stacks" / "of-another" / "jobs.json"
    order.parent.mkdir(parents=True)
    order.write_text(json.dumps(["elsewhere 0123"]))
    (folder / "elsewhere").mkdir()
    with Run(folder / "elsewhere").lock():
        code, said = sweep(monkeypatch, tmp_path, "seed=0,1", "trainer.max_epochs=10")
        assert (code, order.exists()) == (0, True), said
    code, said = sweep(monkeypatch, tmp_path, "seed=2,3", "trainer.max_epochs=10")
    assert (code, order.exists()) == (0, False), said


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_stack_on_a_gpu_agrees_with_the_cpu(stacked, monkeypatch, tmp_path, without_page):
    code, said = sweep(monkeypatch, tmp_path, *GRID, "trainer=gpu")
    assert code == 0, said
    for name, (found, _) in jobs(tmp_path).items():
        close(found["parameters"], jobs(stacked)[name][0]["parameters"], 1e-4, name)
