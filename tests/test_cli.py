"""The commands, as a user types them."""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from runs import command, record

from linear_lab import cli
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry
from linear_lab.terminal import layout

SHORT = ("trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2")


def run(*command, **options):
    environment = {**os.environ, "COLUMNS": "200"} | options.pop("env", {})
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment, **options)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--help"],
            ["optimizer: adam, adamw, lbfgs, rmsprop, sgd", "Six commands to try", "scheduler: cosine, none"],
        ),
        (["--cfg", "job"], ["lr: 0.1", "output_root: outputs"]),
        (["optimizer.lrr=1"], ["optimizer.lrr", "Did you mean optimizer.lr?"]),
        (["-sc", "query=bash"], ["optimizer="]),
    ],
)
def test_what_needs_no_torch_does_without_it(arguments, said, tmp_path):
    script = (
        "import sys; from linear_lab.train import main; sys.argv = ['train', *sys.argv[1:]]\n"
        "try: main()\n"
        "finally: print({'torch', 'lightning', 'tensorboard', 'numpy'} & set(sys.modules), file=sys.stderr)"
    )
    completing = {"COMP_LINE": "linear-lab-train optimi"} if "-sc" in arguments else {}
    result = run(sys.executable, "-c", script, *arguments, cwd=tmp_path, env=completing)
    assert result.stderr.strip().endswith("set()")
    assert all(words in result.stdout + result.stderr for words in said), result
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimiser=adam"], ["Could not override 'optimiser'", "Did you mean optimizer?"]),
        (["optimizer=adm"], ["Could not find 'optimizer/adm'", "Did you mean optimizer=adam?"]),
        (["trainer.max_epoch=3"], ["Did you mean trainer.max_epochs?"]),
        (["optimizer=adam", "optimizer.beta=3"], ["Did you mean optimizer.betas?"]),
        (["optimizer.lr=-1"], ["error: optimizer: lr must be a positive number, got -1"]),
        (["-m", "output_root=/dev/null/x", "seed=0,1"], ["error: no run can be kept in /dev/null/x/sweeps"]),
        (["scheduler=null"], ["error: scheduler=null: choose one of cosine, none, plateau, step"]),
        (["trainer.max_epochs=abc"], ["trainer.max_epochs must be a whole number from -1", "got the text 'abc'"]),
        (["resume=nowhere"], ["error: resume=nowhere: there is no such folder"]),
        (["output_root=/dev/null/x"], ["error: no run can be kept in /dev/null/x/runs"]),
    ],
)
def test_a_mistake_ends_with_one_message_and_exit_code_1(arguments, said, tmp_path):
    if "/dev/null" not in str(arguments):
        arguments = [*arguments, f"output_root={tmp_path}"]
    code, out, err = command(train_entry, *arguments)
    assert code == 1
    assert all(words in err for words in said), err
    assert "Traceback" not in err
    assert out == ""


@pytest.mark.parametrize("entry", [train_entry, evaluate_entry, predict_entry, export_entry, leaderboard_entry])
def test_help_tells_all_groups_and_options(entry):
    name = entry.__name__.rpartition(".")[2]
    code, out, err = command(entry, "-h", "optimizer=no")
    assert (code, err) == (0, "")
    assert f"usage: python -m linear_lab.{name}" in out
    listed = {path.parent.name for path in cli.CONF.glob("*/*.yaml")} if entry is train_entry else ()
    for group in listed:
        assert f"\n{group}: {', '.join(sorted(path.stem for path in (cli.CONF / group).iterdir()))}\n" in out


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def lost():
    with suppress(KeyboardInterrupt):
        ctrl_c()


def put_off():
    OmegaConf.register_new_resolver("ctrl_c", ctrl_c, replace=True)
    assert OmegaConf.create({"key": "${ctrl_c:}"}).key is None


def turned():
    with pytest.raises(KeyboardInterrupt):
        ctrl_c()
    raise ValueError("it was something else")


@pytest.mark.parametrize("when", [ctrl_c, lost, put_off, turned])
@pytest.mark.parametrize("arguments", [(), ("-m", "name=study", "seed=0,1")])
def test_ctrl_c_while_the_config_is_composed(arguments, when, monkeypatch, tmp_path):
    register, begun = cli.register_resolvers, []
    monkeypatch.setattr(cli, "register_resolvers", lambda: (register(), when()))
    code, out, err = command(
        SimpleNamespace(main=cli.entry("train")(begun.append)), *arguments, f"output_root={tmp_path}"
    )
    assert (code, begun) == (130, [])
    assert "interrupted" in err + out
    assert "Traceback" not in err
    assert not [*tmp_path.rglob("sweep.json")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_flags_may_stand_anywhere_and_a_group_may_have_a_plus(tmp_path):
    code, out, err = command(train_entry, "seed=0", "--cfg", "job", "+experiment=debug", f"output_root={tmp_path}")
    assert (code, err) == (0, "")
    assert "max_epochs: 2" in out


@pytest.mark.parametrize("when", [ctrl_c, lost, turned])
def test_ctrl_c_while_a_task_imports(when, tmp_path):
    begun = []

    def task(cfg):
        with cli.importing():
            when()
        begun.append(cfg)

    code, _, err = command(SimpleNamespace(main=cli.entry("train")(task)), f"output_root={tmp_path}")
    assert (code, err, begun) == (130, "interrupted\n", [])


def test_a_second_ctrl_c_waits_for_nothing():
    steps = []
    OmegaConf.register_new_resolver("twice", lambda: [steps.append((k, ctrl_c())) for k in range(3)], replace=True)
    with pytest.raises(SystemExit, match="130"), layout.CtrlC(), suppress(KeyboardInterrupt):
        assert not OmegaConf.create({"key": "${twice:}"}).key
    assert steps == [(0, None)]


def test_ctrl_c_that_means_something_else_is_left_alone():
    elsewhere = threading.Thread(target=layout.CtrlC().__enter__)
    elsewhere.start()
    elsewhere.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    with layout.CtrlC():
        ctrl_c()
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_full_error_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="got -1"):
        command(train_entry, "optimizer.lr=-1", f"output_root={tmp_path}")


def test_train_evaluate_resume(tmp_path):
    root = tmp_path / "a folder, with = and spaces"
    code, out, err = command(train_entry, f"output_root={root}", *SHORT)
    assert (code, err) == (0, "")
    (folder,) = (root / "runs").iterdir()
    assert {path.name for path in folder.iterdir()} >= {".hydra", "checkpoints", "result.json", "train.log"}
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert str(folder) in out

    assert f"evaluate 'run={folder}'" in out
    code, out, _ = command(evaluate_entry, f"run={folder}", "checkpoint=last")
    assert code == 0
    assert "train/loss" in out

    code, out, err = command(train_entry, f"resume={folder}", "trainer.max_epochs=5")
    assert (code, err) == (0, "")
    assert record(folder)["steps"] == 5
    overrides = (folder / ".hydra" / "overrides.yaml").read_text()
    assert "trainer.max_epochs=3" in overrides
    assert "trainer.max_epochs=5" in overrides
    assert [path.name for path in (root / "runs").iterdir()] == [folder.name]

    code, out, _ = command(train_entry, f"resume='{folder}'", "--cfg", "job")
    assert code == 0
    assert "max_epochs: 5" in out
    for arguments, words in {
        ("-m", "trainer.max_epochs=6,7"): "one run goes on",
        ("trainer.max_epochs=3",): "is from epoch 5 already",
        ("trainer.precision=7",): "Precision 7 is invalid",
        ("seed=1",): "seed=1 cannot change",
    }.items():
        code, _, err = command(train_entry, f"resume={folder}", *arguments)
        assert code == 1
        assert words in err
        assert (record(folder)["status"], record(folder)["steps"]) == ("completed", 5)  # a mistake costs nothing
    code, _, err = command(train_entry, f"resume={folder}", "optimizer=adam")
    assert code == 1
    assert "the run goes on with its own optimizer, so optimizer=adam cannot be chosen" in err
    assert record(folder)["status"] == "completed"


def test_a_run_folder_holds_no_config_of_hydra(tmp_path):
    assert command(train_entry, f"output_root={tmp_path}", *SHORT)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    logging_of_a_stranger = folder / ".hydra" / "hydra" / "job_logging" / "file.yaml"
    logging_of_a_stranger.parent.mkdir(parents=True)
    handler = f"{{class: logging.FileHandler, filename: '{tmp_path / 'read'}'}}"
    logging_of_a_stranger.write_text(f"version: 1\nhandlers: {{f: {handler}}}\nroot: {{handlers: [f]}}\n")
    config = folder / ".hydra" / "config.yaml"
    acting = f"hydra: {{callbacks: {{c: {{_target_: os.mkdir, path: '{tmp_path / 'made'}'}}}}}}\ndefaults: [nothing]\n"
    config.write_text(acting + config.read_text())
    code, _, err = command(train_entry, f"resume={folder}", "trainer.max_epochs=5")
    assert (code, err) == (0, "")
    assert record(folder)["steps"] == 5
    assert {path.name for path in tmp_path.iterdir()} == {"runs"}


def test_evaluate_wants_a_run(tmp_path):
    code, _, err = command(evaluate_entry)
    assert code == 1
    assert "error: run=<folder> is missing" in err
    code, _, err = command(evaluate_entry, f"run={tmp_path}")
    assert code == 1
    assert "no result.json in it" in err


def test_a_table_from_training_to_predictions(tmp_path):
    data = tmp_path / "my, data=1.csv"
    data.write_text("living area,[red],c\n" + "".join(f"{k},{k % 5},{2 * k - k % 5 + 7}\n" for k in range(50)))
    code, out, err = command(
        train_entry, f"output_root={tmp_path}", "data=table", f"data.path={data}", "data.y=[c]", "optimizer.lr=0.3"
    )
    assert (code, err) == (0, "")
    assert "optimum c = 2 living area - 1 [red] + 7" in " ".join(out.split())
    (folder,) = (tmp_path / "runs").iterdir()
    code, out, _ = command(predict_entry, f"run={folder}", "x=[10,3]")
    assert (code, out.split()[-1]) == (0, "24")
    code, out, _ = command(predict_entry, f"run={folder}", f"input={data}", f"output={tmp_path / 'a=b, c.csv'}")
    assert code == 0
    assert (tmp_path / "a=b, c.csv").read_text().splitlines()[0] == "living area,[red],c,c_hat"
    code, out, _ = command(export_entry, f"run={folder}", f"output={tmp_path / 'm.pt2'}")
    assert code == 0
    assert "checked, differs from predict by" in out
    for entry, arguments, words in (
        (predict_entry, (), "run=<folder> is missing"),
        (export_entry, (), "run=<folder> is missing"),
        (predict_entry, (f"run={folder}",), "either x=[...] or input=<file>"),
        (predict_entry, (f"run={folder}", "x=[1]"), "x wants 2 numbers a row (living area, [red])"),
        (predict_entry, (f"run={folder}", f"input={tmp_path / 'no.csv'}"), "not there; check the path"),
        (export_entry, (f"run={folder}", "format=h5"), "choose format=pt2"),
    ):
        code, _, err = command(entry, *arguments)
        assert code == 1
        assert words in err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1


def test_a_diverged_run_ends_with_one_message_and_exit_code_1(tmp_path):
    code, _, err = command(train_entry, f"output_root={tmp_path}", "optimizer.lr=0.5")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: diverged at step 8 (train/loss 3.3e+13): lr 0.5 is above 0.1198")
    assert "Traceback" not in err


def test_a_sweep_trains_each_job_and_reports_the_one_that_failed(tmp_path):
    code, out, err = command(
        train_entry, "-m", f"output_root={tmp_path}", "optimizer=sgd,adam", "optimizer.lr=0.01,-1", *SHORT
    )
    assert code == 1
    assert err == ""
    (sweep,) = (tmp_path / "sweeps").iterdir()
    assert out.count("lr=-1: optimizer: lr must be a positive number, got -1") == 4  # at once, and in the end
    names = ["sgd-lr=0.01", "sgd-lr=-1", "adam-lr=0.01", "adam-lr=-1"]
    assert [record(sweep / name)["status"] for name in names] == ["completed", "failed"] * 2
    assert not (tmp_path / "runs").exists()


def test_console_scripts_work_from_any_folder(tmp_path):
    script = Path(sys.executable).with_name("linear-lab-train")
    result = run(script, *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert f"run=outputs/runs/{folder.name}" in result.stdout
    assert record(folder)["status"] == "completed"
    assert "max_epochs=3` reached" in (folder / "train.log").read_text()  # what Lightning says is not lost


@pytest.mark.parametrize("together", [1, 3])
def test_two_processes_equal_one(together, tmp_path):
    overrides = ("data=synthetic", "data.samples=53", "data.batch_size=5", "trainer.max_epochs=8", "seed=3")
    overrides += (f"trainer.accumulate_grad_batches={together}",)
    code, _, _ = command(train_entry, f"output_root={tmp_path / 'one'}", *overrides)
    assert code == 0
    module = (sys.executable, "-m", "linear_lab.train", f"output_root={tmp_path / 'two'}", *overrides)
    result = run(*module, "trainer=ddp", "console.steps=1")
    assert result.returncode == 0, result.stderr
    assert "Traceback" not in result.stderr
    ((one,), (two,)) = (list((tmp_path / name / "runs").iterdir()) for name in ("one", "two"))
    alone, shared = record(one), record(two)
    assert shared["steps"] == alone["steps"]
    for name in ("weight", "bias"):
        assert shared["parameters"][name][0] == pytest.approx(alone["parameters"][name][0], rel=1e-6, abs=1e-6)
    assert len(list(two.glob("events*.[0-9]"))) == 1
    assert result.stdout.count("folder") == 1
