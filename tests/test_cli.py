"""The commands, as a user types them."""

import importlib
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf
from runs import command, record, slow

from linear_lab import UserError, cli, compat
from linear_lab import evaluate as evaluate_entry
from linear_lab import export as export_entry
from linear_lab import leaderboard as leaderboard_entry
from linear_lab import predict as predict_entry
from linear_lab import train as train_entry
from linear_lab.command import entry as entry_of
from linear_lab.fitting import build
from linear_lab.runs import folder as run_folder
from linear_lab.runs.folder import Run
from linear_lab.terminal import layout, signals

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
        (["optimizer.lrr=1"], ["error: optimizer.lrr=1: nothing reads optimizer.lrr; did you mean optimizer.lr?"]),
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


def test_tab_completes_in_bash_as_the_readme_says(tmp_path):
    script = """
        eval "$(linear-lab-train -sc install=bash)"
        COMP_LINE="linear-lab-train seed=1 optimizer=ada"
        COMP_WORDS=($COMP_LINE) COMP_CWORD=2
        hydra_bash_completion
        echo "${COMPREPLY[@]}"
    """
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    result = run("bash", "-c", script, cwd=tmp_path, env={"PATH": path})
    assert (result.stdout, result.stderr) == ("optimizer=adam optimizer=adamw\n", "")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["optimizer=adm"], ["error: optimizer=adm: choose one of adam, adamw", "did you mean optimizer=adam?"]),
        (["optimizer=5"], ["error: optimizer=5: choose one of adam, adamw, lbfgs, rmsprop, sgd"]),
        (["optimizer=[]"], ["error: optimizer=[]: choose one of adam"]),
        (["~optimizer"], ["error: ~optimizer: choose one of adam"]),
        (["callbacks=[1,2]"], ["error: callbacks=[1,2]: choose one of default, early_stopping"]),
        (["logger=true"], ["error: logger=true: choose one of csv, mlflow, none, tensorboard, wandb"]),
        (["console=null"], ["error: console=null: console holds several values", "as in console.steps=0"]),
        (["metric=1e3"], ["error: metric=1e3 is not measured in training"]),
        (["metric=ünï"], ["error: metric=ünï is not measured in training"]),
        (["output_root="], ["error: output_root=: the value is empty"]),
        (["resume="], ["error: resume=: the value is empty"]),
        (["hydra.run.dir="], ["error: hydra.run.dir=: the value is empty"]),
        (["data=table", "data.path="], ["error: data.path=: the value is empty"]),
        (["output_root=null"], ["error: output_root=null: output_root needs a value, as in output_root=outputs"]),
        (["mode=null"], ["error: mode=null: mode needs a value, as in mode=min"]),
        (["-m", "--cfg", "job"], ["error: -m --cfg: only one of these can be used"]),
        (
            ["seed=1", "--cfg", "hydra", "--resolve"],
            ["error: --resolve: Hydra's own values are known only during a run", "try --cfg job"],
        ),
        (["--experimental-rerun", "no.pickle"], ["error: --experimental-rerun no.pickle: there is no such file"]),
        (["--experimental-rerun=no.pickle", "seed=1"], ["error: --experimental-rerun no.pickle: there is no such"]),
        (["seed=1", "--config-dir", "nowhere"], ["error: --config-dir nowhere: there is no such folder"]),
        (["-cd=nowhere"], ["error: --config-dir nowhere: there is no such folder"]),
        (["seed=${seed}"], ["error: seed: Recursive interpolation"]),
        (["optimizer.lr=${nope}"], ["Interpolation key 'nope' not found"]),
        (["trainer.max_epochs=${oc.env:NOPE}"], ["error: trainer.max_epochs: ", "'NOPE' not found"]),
        (["~trainer.accelerator"], ["error: trainer.accelerator: the config has no such key"]),
        (["~console.steps"], ["error: console.steps: the config has no such key"]),
        (["~loss._target_"], ["error: ~loss._target_: a run needs loss._target_"]),
        (["callbacks.checkpoints=5"], ["error: callbacks.checkpoints=5: callbacks.checkpoints holds several values"]),
        (["data.train=5"], ["error: data.train=5: data.train holds several values"]),
        (["~metric"], ["error: ~metric: a run needs metric; give it another value"]),
        (["=5"], ["error: =5: cannot be parsed as key=value"]),
        (["seed"], ["error: seed: cannot be parsed as key=value"]),
        (["seed=(1"], ["error: seed=(1: cannot be parsed as key=value"]),
        (["-m", "optimizer=adam,adamw", "optimizer.betas=[0,0.9]"], ["so type optimizer.betas=choice([0,0.9])"]),
        (["optimizer.lr=-1"], ["error: optimizer: lr must be a positive number, got -1"]),
        (["-m", "output_root=/dev/null/x", "seed=0,1"], ["error: cannot make a run folder in /dev/null/x/sweeps"]),
        (["scheduler=null"], ["error: scheduler=null: choose one of cosine, none, plateau, step"]),
        (["trainer.max_epochs=abc"], ["trainer.max_epochs must be a whole number from -1", "got the text 'abc'"]),
        (["resume=nowhere"], ["error: resume=nowhere: there is no such folder"]),
        (["output_root=/dev/null/x"], ["error: cannot make a run folder in /dev/null/x/runs"]),
    ],
)
def test_a_mistake_ends_with_one_message_and_exit_code_1(arguments, said, tmp_path):
    if "/dev/null" not in str(arguments):
        arguments = [f"output_root={tmp_path}", *arguments]
    code, out, err = command(train_entry, *arguments)
    assert code == 1
    assert all(words in err for words in said), err
    assert len(err.splitlines()) == 1
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


def test_help_describes_each_experiment_and_sweep_in_one_line(tmp_path):
    _, out, _ = command(train_entry, "--help")
    assert max(map(len, out.splitlines())) <= 100
    for group in ("experiment", "sweep"):
        for path in (cli.CONF / group).iterdir():
            comment = next(line for line in path.read_text().splitlines() if "@package" not in line).removeprefix("# ")
            assert f"\n  {path.stem:<12}{comment}\n" in out
    assert "did you mean" in out
    own = tmp_path / "experiment"
    own.mkdir()
    (own / "mine.yaml").write_text("# @package _global_\n# My größe.\nseed: 1\n", encoding="utf-8")
    (own / "bare.yaml").write_text("seed: 2\n")
    (own / "long.yaml").write_text(f"# {'word ' * 50}\n")
    _, out, _ = command(train_entry, "--help", "--config-dir", str(tmp_path))
    assert "\n  mine        My größe.\n" in out
    assert "\n  bare        \n" in out
    assert max(map(len, out.splitlines())) <= 100


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
        SimpleNamespace(main=entry_of("train")(begun.append)), *arguments, f"output_root={tmp_path}"
    )
    assert (code, begun) == (130, [])
    assert "interrupted" in err + out
    assert "Traceback" not in err
    assert not [*tmp_path.rglob("sweep.json")]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(
    "typed",
    [
        ("optimizer=adam", "-m", "seed=1,2"),
        ("optimizer=adam", "seed=1,2", "--multirun"),
        ("-m", "optimizer=adam", "seed=1,2"),
    ],
)
@pytest.mark.slow("test_flags_may_stand_anywhere_and_a_group_may_have_a_plus sorts the same arguments")
def test_a_sweep_may_be_asked_for_anywhere(typed, tmp_path):
    code, _, err = command(train_entry, f"output_root={tmp_path}", "name=study", *typed, *SHORT)
    assert (code, err) == (0, "")
    assert {path.parent.name for path in tmp_path.glob("sweeps/study/*/result.json")} == {"adam-seed=1", "adam-seed=2"}


@pytest.mark.parametrize("entry", [evaluate_entry, predict_entry, export_entry, leaderboard_entry])
def test_only_training_is_done_many_times(entry, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, out, err = command(entry, "run=a,b", "-m")
    assert (code, out) == (1, "")
    assert err.startswith("error: -m: only linear_lab.train has this flag")
    assert not [*tmp_path.iterdir()]


def test_flags_may_stand_anywhere_and_a_group_may_have_a_plus(tmp_path):
    code, out, err = command(train_entry, "seed=0", "--cfg", "job", "+experiment=debug", f"output_root={tmp_path}")
    assert (code, err) == (0, "")
    assert "max_epochs: 2" in out


@pytest.mark.parametrize(
    "typed", ["experiment=debug", "callbacks=early_stopping", "callbacks=[default,early_stopping]"]
)
def test_a_plus_before_a_group_changes_nothing(typed):
    without, with_plus = (command(train_entry, f"{plus}{typed}", "--cfg", "job") for plus in ("", "+"))
    assert with_plus == without
    assert without[::2] == (0, "")
    assert command(train_entry, "+experiment=debg", "--cfg", "job")[2].startswith(
        "error: experiment=debg: choose one of "
    )


def at(moment):
    """Patch a function to be called as at a moment of a command, before it does what it does."""

    def patched(monkeypatch, act):
        owner, name = {"imports": (compat, "without_collection"), "builds": (build, "build_data")}[moment]
        given = getattr(owner, name)
        monkeypatch.setattr(cli if moment == "imports" else owner, name, lambda *args: (act(), given(*args))[1])

    return patched


@pytest.mark.parametrize("signum", [signal.SIGTERM, *slow("one signal is quick", signal.SIGINT, signal.SIGHUP)])
@pytest.mark.parametrize("moment", ["imports", "builds"])
def test_a_signal_before_training_is_recorded(moment, signum, monkeypatch, tmp_path):
    at(moment)(monkeypatch, lambda: os.kill(os.getpid(), signum))
    code, _, err = command(train_entry, f"output_root={tmp_path}", *SHORT)
    assert code == 128 + signum
    assert "Traceback" not in err
    (folder,) = (tmp_path / "runs").iterdir()
    assert (record(folder)["status"], record(folder)["error"]) == ("interrupted", None)
    monkeypatch.undo()
    code, _, err = command(train_entry, f"resume={folder}")
    assert (code, err) == (0, "")
    assert (record(folder)["status"], record(folder)["steps"]) == ("completed", 3)
    assert {path.name for path in (folder / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    at(moment)(monkeypatch, lambda: os.kill(os.getpid(), signum))
    before = record(folder)
    assert command(train_entry, f"resume={folder}", "trainer.max_epochs=4")[0] == 128 + signum
    assert record(folder) == before


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("name", ["train", "evaluate", "predict", "export", "leaderboard"])
def test_a_signal_while_hydra_is_imported_shows_no_traceback(name, signum, tmp_path):
    script = (
        "import os, runpy, sys\n"
        "class Signalling:\n"
        "    def find_spec(name, path=None, target=None):\n"
        f"        if name in ('hydra', 'rich'): os.kill(os.getpid(), {int(signum)})\n"
        "sys.meta_path.insert(0, Signalling)\n"
        f"runpy.run_module('linear_lab.{name}', run_name='__main__')"
    )
    result = run(sys.executable, "-c", script, cwd=tmp_path)
    assert (result.returncode, result.stdout, result.stderr) == (128 + signum, "", "interrupted\n")
    assert not list(tmp_path.iterdir())


def test_a_hangup_that_nohup_ignores_stays_ignored(tmp_path, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for moment in ("imports", "builds"):
            at(moment)(monkeypatch, lambda: os.kill(os.getpid(), signal.SIGHUP))
        code, _, err = command(train_entry, f"output_root={tmp_path}", *SHORT)
        assert (code, err) == (0, "")
    finally:
        assert signal.signal(signal.SIGHUP, before) is signal.SIG_IGN


@pytest.mark.parametrize("when", [ctrl_c, lost, turned])
def test_ctrl_c_while_a_task_imports(when, tmp_path):
    begun = []

    def task(cfg):
        with cli.importing():
            when()
        begun.append(cfg)

    code, _, err = command(SimpleNamespace(main=entry_of("train")(task)), f"output_root={tmp_path}")
    assert (code, err, begun) == (130, "interrupted\n", [])


def test_a_second_ctrl_c_waits_for_nothing():
    steps = []
    OmegaConf.register_new_resolver("twice", lambda: [steps.append((k, ctrl_c())) for k in range(3)], replace=True)
    with pytest.raises(SystemExit, match="130"), signals.EndOnSignal(), suppress(KeyboardInterrupt):
        assert not OmegaConf.create({"key": "${twice:}"}).key
    assert steps == [(0, None)]


def test_ctrl_c_that_means_something_else_is_left_alone():
    elsewhere = threading.Thread(target=signals.EndOnSignal().__enter__)
    elsewhere.start()
    elsewhere.join()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as nohup does
    with signals.EndOnSignal():
        ctrl_c()
    assert signal.signal(signal.SIGINT, before) is signal.SIG_IGN


def test_full_error_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    with pytest.raises(Exception, match="got -1"):
        command(train_entry, "optimizer.lr=-1", f"output_root={tmp_path}")


@pytest.mark.parametrize("name", ["695e0514", "123e4567", "1e3", "ünï", "true", "7", "0x1f", "nan", "研究", "a=b"])
@pytest.mark.slow("three commands per text; test_output and test_overrides have such texts")
def test_the_name_of_a_sweep_is_a_text_as_typed(name, tmp_path):
    code, _, err = command(train_entry, "-m", f"output_root={tmp_path}", f"name={name}", "seed=1", *SHORT)
    assert (code, err) == (0, "")
    assert [folder.name for folder in (tmp_path / "sweeps").iterdir()] == [name]
    again = command(train_entry, "-m", f"output_root={tmp_path}", f"name={name}", "seed=1", *SHORT)
    assert (again[0], again[2]) == (0, "")
    assert record(tmp_path / "sweeps" / name / "sgd")["steps"] == 3
    assert command(leaderboard_entry, f"sweep={tmp_path / 'sweeps' / name}")[0] == 0


@pytest.mark.parametrize("text", ["695e0514", "1e3", "ünï", "true", "007", "1_0", "nan", "a=b, c"])
@pytest.mark.slow("six commands per text; test_output and test_overrides have such texts")
def test_other_texts_are_as_typed(text, tmp_path):
    keys = ["output_root", "hydra.run.dir", "data.path"]
    if "," not in text:  # else it is a sweep
        keys += ["data.y", "data.split", "metric"]
    code, out, err = command(train_entry, "data=table", *(f"{key}={text}" for key in keys), "--cfg", "all")
    assert (code, err) == (0, "")
    cfg = OmegaConf.create(out)
    assert [str(OmegaConf.select(cfg, key)) for key in keys] == [text] * len(keys)
    for entry, key in (
        (predict_entry, "output"),
        (predict_entry, "input"),
        (export_entry, "output"),
        (evaluate_entry, "run"),
    ):
        code, out, err = command(entry, f"{key}={text}", "--cfg", "job")
        assert (code, err, OmegaConf.create(out)[key]) == (0, "", text)
    code, _, err = command(leaderboard_entry, f"sweep={text}")
    assert err.startswith(f"error: sweep={text}: there is no such folder")


@pytest.mark.parametrize("name", ["optimizer/sgd.yaml", "train.yaml"])
def test_an_option_file_that_would_be_ignored(name, tmp_path, capsys):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("_target_: torch.optim.NAdam\n")
    with pytest.raises(UserError, match=f"{name}: linear_lab has an option of this name.*; rename it"):
        cli.check_config_dir(str(tmp_path))
    cli.check_config_dir(str(cli.CONF))


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
        ("-m", "trainer.max_epochs=6,7"): "resume continues one run",
        ("trainer.max_epochs=3",): "has reached epoch 5",
        ("trainer.precision=7",): "Precision 7 is invalid",
        ("seed=1",): "seed=1 cannot change",
    }.items():
        code, _, err = command(train_entry, f"resume={folder}", *arguments)
        assert code == 1
        assert words in err
        assert (record(folder)["status"], record(folder)["steps"]) == ("completed", 5)  # a mistake costs nothing
    code, _, err = command(train_entry, f"resume={folder}", "optimizer=adam")
    assert code == 1
    assert "a resumed run keeps its optimizer, so leave out optimizer=adam" in err
    assert record(folder)["status"] == "completed"


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "left", ["result.json", ".hydra/config.yaml", "checkpoints/last.ckpt", "events.out.tfevents.1"]
)
@pytest.mark.slow("like test_the_log_of_a_command_refuses_a_link")
def test_a_folder_that_holds_a_run_is_refused(left, tmp_path):
    (tmp_path / left).parent.mkdir(exist_ok=True)
    (tmp_path / left).write_text("of a run")
    before = contents(tmp_path)
    code, out, err = command(train_entry, f"hydra.run.dir={tmp_path}", *SHORT)
    assert (code, out) == (1, "")
    assert f"error: {tmp_path}: it already holds a run ({Path(left).name}); continue it with resume={tmp_path}," in err
    assert contents(tmp_path).items() - before.items() <= {(tmp_path / ".lock", b"")}


@pytest.mark.parametrize(
    "place", ["/proc/x", "/dev/null", "/dev/null/x", "{}/file/x", "{}/file", "{}/" + 300 * "x", "{}/locked/x"]
)
def test_a_place_that_can_hold_no_run_is_named(place, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    mkdir = Path.mkdir

    def locked(path, *args, **options):  # root may write everywhere
        if "locked" in path.parts:
            raise PermissionError(13, "Permission denied", str(path))
        mkdir(path, *args, **options)

    monkeypatch.setattr(Path, "mkdir", locked)
    place = place.format(tmp_path)
    for override in (f"hydra.run.dir={place}", f"output_root={place}"):
        code, out, err = command(train_entry, override, *SHORT)
        assert (code, out) == (1, "")
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1
        assert place in err
        assert "cannot make a run folder" in err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("entry", [train_entry, evaluate_entry, predict_entry, export_entry, leaderboard_entry])
@pytest.mark.parametrize("argument", ["-m", "--cfg=job", "run=x", "resume=x", "output_root=/tmp"])
def test_a_working_directory_that_was_deleted_is_named(argument, entry, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here").rmdir()
    code, out, err = command(entry, argument)
    assert (code, out) == (1, "")
    assert err == "error: the working directory was deleted; change to another one, for example with cd ~\n"


@pytest.mark.slow("like test_an_optimizer_is_a_file_of_a_few_lines")
def test_a_folder_of_ones_own_is_taken_once(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    assert command(train_entry, f"hydra.run.dir={tmp_path}", *SHORT)[0] == 0
    assert {path.name for path in (tmp_path / ".hydra").iterdir()} == {"config.yaml", "hydra.yaml", "overrides.yaml"}
    assert (tmp_path / "train.log").exists()
    before = contents(tmp_path)
    code, _, err = command(train_entry, f"hydra.run.dir={tmp_path}", "seed=1", *SHORT)
    assert code == 1
    assert f"error: {tmp_path}: it already holds a run (result.json)" in err
    assert contents(tmp_path) == before


@pytest.mark.slow("like test_an_optimizer_is_a_file_of_a_few_lines")
def test_a_refused_command_writes_nothing_where_another_process_trains(finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "run")
    before = contents(folder)
    with Run(folder).lock():
        for arguments in ((f"hydra.run.dir={folder}", "seed=1"), (f"resume={folder}", "trainer.max_epochs=501")):
            code, out, err = command(train_entry, *arguments)
            assert (code, out) == (1, "")
            assert f"error: {folder}: another process trains in this folder; wait until it ends" in err
    assert contents(folder).items() - before.items() <= {(folder / ".lock", b"")}


def test_a_run_is_trained_where_the_command_was_typed_or_in_its_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    for chdir in ("true", "false"):
        typed = ("data=table", "data.path=data.csv", "data.y=[y]", f"hydra.job.chdir={chdir}", f"output_root={chdir}")
        code, _, err = command(train_entry, *typed, *SHORT)
        assert (code, err) == (0, "")
        (folder,) = (tmp_path / chdir / "runs").iterdir()
        saved = OmegaConf.load(folder / ".hydra" / "hydra.yaml").hydra
        assert (saved.job.chdir, saved.runtime.cwd) == (chdir == "true", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"data.csv", "true", "false"}


@pytest.mark.slow("like test_a_hangup_that_nohup_ignores_stays_ignored")
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
    assert "it has no result.json" in err


@pytest.mark.slow("five commands; test_prediction and test_table have each")
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
        (predict_entry, (f"run={folder}",), "either as x=[...] or as input=<file>"),
        (predict_entry, (f"run={folder}", "x=[1]"), "x needs 2 finite numbers per row (living area, [red])"),
        (predict_entry, (f"run={folder}", f"input={tmp_path / 'no.csv'}"), "not there; check the path"),
        (export_entry, (f"run={folder}", "format=h5"), "choose format=pt2"),
    ):
        code, _, err = command(entry, *arguments)
        assert code == 1
        assert words in err
        assert err.startswith("error: ")
        assert len(err.splitlines()) == 1


def hints(text):
    """The commands that a command's answer names last, by their names."""
    lines = (line.split("  ", 1) for line in text.splitlines())
    return {
        line[0].strip(): line[1].strip()
        for line in lines
        if (len(line) == 2 and "linear_lab" in line[1]) or line[0] == "look"
    }


@pytest.mark.parametrize("where", [(), ("hydra.job.chdir=true",)])
@pytest.mark.parametrize("sweep", [(), ("-m", "name=study")])
@pytest.mark.slow("types what is shown; test_a_run_is_trained_where_the_command_was_typed_or_in_its_folder is quick")
def test_commands_to_type_next_work_where_the_command_was_typed(sweep, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine/optimizer/nadam.yaml").write_text("_target_: torch.optim.NAdam\nlr: 0.1\n")
    (tmp_path / "my.csv").write_text("x,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)))
    typed = ("--config-dir", "mine", "optimizer=nadam", "data=table", "data.path=my.csv", "data.y=y", *SHORT)
    code, out, err = command(train_entry, *sweep, *typed, *where)
    monkeypatch.chdir(tmp_path)
    assert (code, err) == (0, "")
    commands = hints(out)
    assert {*commands} >= ({"train again", "look"} if sweep else {"evaluate", "predict", "go on", "look"})
    for name, line in commands.items():
        words = shlex.split(line)
        module, arguments = words[2], [word.replace("<more>", "5") for word in words[3:]]
        assert Path(words[0]).exists() or words[0] == "python"
        if name == "look":
            assert module == "linear_lab.dashboard"  # no Makefile here
            assert Path(arguments[0]).is_dir()
        else:
            assert "--config-dir mine" in line
            code, _, err = command(importlib.import_module(module), *arguments)
            monkeypatch.chdir(tmp_path)
            assert (code, err) == (0, ""), line
    if sweep:
        code, out, _ = command(leaderboard_entry, "sweep=outputs/sweeps/study")
        assert "--config-dir mine" in out
    assert {path.name for path in tmp_path.iterdir()} == {"mine", "my.csv", "outputs"}


def test_commands_in_the_checkout_are_those_of_make(tmp_path, monkeypatch):
    monkeypatch.chdir(cli.CONF.parent)
    assert layout.dashboard(tmp_path) == f"make dashboard LOGDIR={tmp_path}"
    assert layout.installing("onnx").endswith(" -m pip install -e '.[onnx]'")
    monkeypatch.chdir(tmp_path)
    assert layout.installing("onnx").endswith(f" -m pip install -e '{cli.CONF.parent}[onnx]'")


def test_commands_without_a_checkout_need_none(monkeypatch):
    monkeypatch.setattr(layout, "CHECKOUT", None)
    monkeypatch.setattr(run_folder, "CHECKOUT", None)
    monkeypatch.chdir(cli.CONF.parent)
    assert layout.dashboard(Path("outputs")).endswith(" -m linear_lab.dashboard outputs")
    assert layout.installing("onnx").endswith(" -m pip install 'linear_lab[onnx]'")
    assert run_folder.git_revision() is None


@pytest.mark.slow("like test_a_hangup_that_nohup_ignores_stays_ignored")
def test_an_optimizer_without_a_rate_has_the_one_of_its_class(tmp_path):
    for typed in ([], ["optimizer.lr=0.001"]):
        left = [] if typed else ["~optimizer.lr"]
        code, _, err = command(train_entry, f"output_root={tmp_path / str(len(typed))}", *SHORT, *typed, *left)
        assert (code, err) == (0, "")
    one, other = (record(path) for path in sorted(tmp_path.glob("*/runs/*")))
    assert one["parameters"] == other["parameters"]


@pytest.mark.parametrize("typed", ["model={bias:false}", "callbacks.checkpoints={mode:min}", "data.val=null"])
@pytest.mark.slow("like test_a_hangup_that_nohup_ignores_stays_ignored")
def test_a_part_of_a_node_may_be_typed(typed, tmp_path):
    assert command(train_entry, f"output_root={tmp_path}", typed, *SHORT, "metric=train/loss")[::2] == (0, "")


def test_a_diverged_run_ends_with_one_message_and_exit_code_1(tmp_path):
    code, _, err = command(train_entry, f"output_root={tmp_path}", "optimizer.lr=0.5")
    assert code == 1
    assert err.splitlines()[-1].startswith("error: diverged at step 8 (train/loss 3.3e+13): lr 0.5 is above 0.1198")
    assert "Traceback" not in err


@pytest.mark.slow("like test_a_rate_that_is_no_number_fails_its_job_in_one_line")
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


@pytest.mark.parametrize(
    "environment",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii", "PYTHONCOERCECLOCALE": "0"},
        *slow("warnings are errors in each test", {"PYTHONWARNINGS": "error"}),
    ],
)
@pytest.mark.slow("processes that import torch")
def test_any_locale_and_any_filter_of_warnings(environment, tmp_path):
    (tmp_path / "my.csv").write_text("größe,y\n" + "".join(f"{k},{2 * k}\n" for k in range(20)), encoding="utf-8")
    script = (
        "import sys; from linear_lab import train, predict\n"
        "typed = {train: ['data=table', 'data.path=my.csv', 'data.y=y', 'hydra.run.dir=r', 'trainer.max_epochs=2'],\n"
        "         predict: ['run=r', 'input=my.csv'], train.main: sys.argv[1:]}\n"
        "for entry, arguments in typed.items():\n"
        "    sys.argv = ['train', *arguments]\n"
        "    getattr(entry, 'main', entry)()\n"
    )
    result = run(sys.executable, "-c", script, "name=größe", cwd=tmp_path, env=environment)
    if "LC_ALL" in environment:
        assert "y = 2 gr\\xf6\\xdfe" in result.stdout
        assert (
            result.stderr == "error: this locale has only ascii characters, and others were typed; set PYTHONUTF8=1\n"
        )
    else:
        assert "y = 2 größe" in result.stdout
        assert result.stderr == "error: name='größe': only for sweeps; add -m, as make sweep does, or leave it out\n"
    assert result.returncode == 1
    assert "größe" in (tmp_path / "r" / "predictions.csv").read_text(encoding="utf-8")
    assert "max_epochs=2` reached" in (tmp_path / "r" / "train.log").read_text(encoding="utf-8")


@pytest.mark.slow("processes that import torch; other tests call the same functions")
def test_console_scripts_work_from_any_folder(tmp_path):
    script = Path(sys.executable).with_name("linear-lab-train")
    result = run(script, *SHORT, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder,) = (tmp_path / "outputs" / "runs").iterdir()
    assert f"run=outputs/runs/{folder.name}" in result.stdout
    assert record(folder)["status"] == "completed"
    assert "max_epochs=3` reached" in (folder / "train.log").read_text()  # what Lightning says is not lost


@pytest.mark.slow("starts two processes; test_accumulation computes the same mean by hand")
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


def test_a_defect_shows_its_traceback(tmp_path, monkeypatch):
    def broken(*_):
        raise AttributeError("a defect")

    monkeypatch.setattr(build, "build_data", broken)
    code, _, err = command(train_entry, f"output_root={tmp_path}", "logger=none")
    assert code == 1
    assert "Traceback" in err
    assert "AttributeError: a defect" in err
