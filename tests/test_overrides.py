"""What was typed and is read by nothing: refused, with the nearest key, by every command."""

import pytest
from omegaconf import OmegaConf
from runs import command

from linear_lab import UserError, evaluate, export, leaderboard, predict, train
from linear_lab.overrides import takes


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("typed", "nearest"),
    [
        ("lr=0.01", "optimizer.lr"),
        ("epochs=3", "trainer.max_epochs"),
        ("batch_size=2", "data.batch_size"),
        ("momentun=0.9", "optimizer.momentum"),
        ("optimiser=adam", "optimizer"),
        ("optimiser.lr=1", "optimizer.lr"),
        ("trainer.max_epoch=3", "trainer.max_epochs"),
        ("optimizer.momentun=0.9", "optimizer.momentum"),
        ("model.bais=false", "model.bias"),
        ("data.batchsize=1", "data.batch_size"),
        ("callbacks.checkpoints.mod=min", "callbacks.checkpoints.mode"),
        ("console.step=1", "console.steps"),
        ("logger.picture=false", "logger.tensorboard.pictures"),
        ("logger.pictures=false", "logger.tensorboard.pictures"),
    ],
)
@pytest.mark.parametrize("sweep", [(), ("-m", "seed=1,2")])
def test_a_key_that_nothing_reads_is_refused_with_the_nearest(plus, typed, nearest, sweep, tmp_path):
    code, out, err = command(train, f"output_root={tmp_path}", *sweep, f"{plus}{typed}")
    key = typed.partition("=")[0]
    assert (code, out) == (1, "")
    assert err == f"error: {plus}{typed}: nothing reads {key}; did you mean {nearest}?\n"
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (("+data.foo=1",), "nothing reads data.foo; --cfg job shows all keys"),
        (("+loss.foo=1",), "nothing reads loss.foo"),
        (("scheduler=step", "+scheduler.foo=1"), "nothing reads scheduler.foo"),
        (("loss.delta=2",), "loss.delta=2: loss.delta is a key of loss=huber; choose that option too"),
        (("optimizer=adam", "optimizer.momentum=0.9"), "is a key of optimizer=rmsprop and optimizer=sgd; choose"),
        (("+scheduler.gamma=1",), "scheduler.gamma is a key of scheduler=step; choose that option too"),
        (("+trainer.callbacks=[]",), "nothing reads trainer.callbacks"),  # a run gives them itself
        (("+trainer.default_root_dir=x",), "nothing reads trainer.default_root_dir"),
        (("+model.schema=2",), "nothing reads model.schema"),
        (("+optimizer.own=1", "+other=${optimizer.own}"), "nothing reads other"),
        (("+note=1", "metric=val/note"), "nothing reads note"),
        (("+seed=2",), "the config has seed already; leave out the +"),
        (("+workers=2",), "nothing reads workers"),  # what a resolver is called
        (("console={step:2}",), "nothing reads console.step; did you mean console.steps?"),
        (("++model={bais:false}",), "nothing reads model.bais; did you mean model.bias?"),
        (("seed.x=3",), "nothing reads seed.x"),
        (("optimizer.dampening=0.3",), "if it is an argument of torch.optim.SGD, type +optimizer.dampening=0.3"),
        (("-m", "optimizer=sgd,adam", "optimizer.beta=1,2"), "did you mean optimizer.betas?"),
        (("-m", "optimizer=sgd,adam", "+optimizer.beta=1"), "did you mean optimizer.betas?"),
        (("sweep=optimizers", "optimizer.beta=1,2"), "did you mean optimizer.betas?"),
        (("scheduler._target_=x",), "nothing reads scheduler._target_; --cfg job"),  # and not that of another group
        (("optimizer=adam", "optimizer.betas.1=0.9"), "set the whole list, as in optimizer.betas=[0.9,0.999]"),
        (("optimizer=adam", "+optimizer.betas.1=0.9"), "set the whole list, as in optimizer.betas=[0.9,0.999]"),
        (("optimizer={a:1}",), "if it is an argument of torch.optim.SGD, type ++optimizer={a:1}"),
        (("++optimizer={a:1}",), "nothing reads optimizer.a"),
        (("data={_target_:own.Mine,n:6}",), "if it is an argument of own.Mine, type ++data={_target_:own.Mine,n:6}"),
        (("optimizer.lr={a:1}",), "optimizer.lr holds one value, as in optimizer.lr=0.1"),
        (("~model.weight",), "model.weight has no value that could be removed"),
        (("data=table", "~data.path"), "data.path has no value that could be removed"),
        (("sweep=null",), "choose one of grid"),
        (("launch=null",), "choose one of joblib"),
        (("-m", "optimizer=sgd,null"), "choose one of adam"),
        (("optimizer=[sgd,adam]",), "choose one of adam"),
        (("-m", "seed=choice(2,4,null)"), "type several values as in seed=2,4,null or seed=range(0,9)"),
        (("-m", "seed=1,,2"), "type several values as in seed=2,4,null"),
        (("optimizer.lr=0,1",), "several values need a sweep: add -m, as make sweep does; write a decimal as 0.1"),
        (("optimizer=sgd,adam",), "several values need a sweep: add -m, as make sweep does"),
        ((f"optimizer.lr={'[' * 300}{']' * 300}",), "fewer brackets"),
        ((f"optimizer.lr={'1' * 5000}",), "give a shorter value"),
        (("output_root=~nobodyuser/x",), "there is no such user"),
        (("-m", "hydra.sweeper.params=5"), "type the values to try"),
    ],
)
def test_what_is_read_by_nothing(typed, said, tmp_path):
    code, _, err = command(train, f"output_root={tmp_path}", *typed)
    assert code == 1
    assert said in err
    assert len(err.splitlines()) == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    ("typed", "key", "value"),
    [
        (("+half=0.05", "optimizer.lr=${half}"), "half", 0.05),
        (("+own.half=0.05", "optimizer.lr=${own.half}"), "own.half", 0.05),
        (("+half=0.05", "optimizer.lr=${oc.select:half,1}"), "half", 0.05),
        (("+optimizer.half=0.05", "optimizer.lr=${.half}"), "optimizer.half", 0.05),
        (("+optimizer.dampening=0.3",), "optimizer.dampening", 0.3),
        (("++optimizer.lr=0.05",), "optimizer.lr", 0.05),
        (("++seed=3",), "seed", 3),
        (("++optimizer={dampening:0.3}",), "optimizer.dampening", 0.3),
        (("model={bias:false}",), "model.bias", False),
        (("optimizer._target_=torch.optim.NAdam", "+optimizer.momentum_decay=1"), "optimizer.momentum_decay", 1),
        (("+model._convert_=all",), "model._convert_", "all"),
        (("+callbacks.timer={_target_: lightning.pytorch.callbacks.Timer}", "+callbacks.timer.duration=x"),
         "callbacks.timer.duration", "x"),
        (("+tag=a", "hydra.run.dir=${output_root}/${tag}"), "tag", "a"),
    ],
)  # fmt: skip
def test_what_a_class_takes_or_another_value_refers_to_is_read(typed, key, value, tmp_path):
    code, out, err = command(train, f"output_root={tmp_path}", *typed, "--cfg", "job")
    assert (code, err) == (0, "")
    assert OmegaConf.select(OmegaConf.create(out), key) == value


@pytest.mark.parametrize("plus", ["", "+", "++"])
@pytest.mark.parametrize(
    ("entry", "typed", "nearest"),
    [
        (evaluate, "chekpoint=last", "checkpoint"),
        (predict, "inptu=a.csv", "input"),
        (export, "formt=onnx", "format"),
        (leaderboard, "swep=x", "sweep"),
        (leaderboard, "tops=3", "top"),
    ],
)
def test_each_command_refuses_them(entry, plus, typed, nearest):
    key = typed.partition("=")[0]
    answer = f"error: {plus}{typed}: nothing reads {key}; did you mean {nearest}?\n"
    assert command(entry, f"{plus}{typed}") == (1, "", answer)


def test_the_files_of_another_folder_count(tmp_path):
    folder = tmp_path / "mine" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "nadam.yaml").write_text("_target_: torch.optim.NAdam\nlr: 0.1\nown: ${lr_of_mine}\n")
    typed = ("--config-dir", folder.parent, f"output_root={tmp_path / 'root'}", "optimizer=nadam", "--cfg", "job")
    code, _, err = command(train, *typed, "+lr_of_mine=3", "optimizer.lr=1", "+optimizer.momentum_decay=1")
    assert (code, err) == (0, "")
    code, _, err = command(train, *typed, "optimizer.momentun_decay=1")
    assert code == 1
    assert "if it is an argument of torch.optim.NAdam" in err
    code, _, err = command(train, *typed, "optimizer=nadm")
    assert code == 1
    assert "choose one of adam, adamw, lbfgs, nadam, rmsprop, sgd; did you mean optimizer=nadam?" in err


@pytest.mark.parametrize(
    "typed", [("experiment=null",), ("experiment=debug", "experiment=null"), ("callbacks=[default,early_stopping]",)]
)
def test_choices_without_an_option_or_with_several(typed, tmp_path):
    code, out, err = command(train, f"output_root={tmp_path}", *typed, "--cfg", "job")
    assert (code, err) == (0, "")
    assert OmegaConf.create(out).trainer.max_epochs == 500


@pytest.mark.parametrize("typed", [("sweep=lr", "seed=0,1"), ("hydra.mode=MULTIRUN", "seed=0,1")])
def test_a_config_that_sweeps_needs_no_flag(typed, tmp_path):
    """It gets as far as the sweeper, which looks at mode=."""
    code, _, err = command(train, f"output_root={tmp_path}", *typed, "mode=x")
    assert (code, err) == (1, "error: mode=x: choose min or max\n")


def test_a_folder_for_a_sweep_is_the_only_one(tmp_path):
    command(train, f"output_root={tmp_path / 'root'}", "-m", f"hydra.sweep.dir={tmp_path / 'sweep'}", "mode=x")
    assert not [*tmp_path.iterdir()]


def test_a_rate_that_is_no_number_fails_its_job_in_one_line(tmp_path):
    code, out, err = command(
        train, f"output_root={tmp_path}", "-m", "name=s", "optimizer.lr=0.1,x", "trainer.max_epochs=0"
    )
    assert code == 1
    assert "failed  sgd-lr=x: optimizer: lr must be a positive number" in out
    assert "validation error" not in out + err


def test_a_folder_in_which_nothing_can_be_written_is_named(tmp_path, monkeypatch):
    def refuse(folder):
        raise UserError(f"cannot write in {folder}: Read-only file system")

    monkeypatch.setattr("linear_lab.runs.atomic.check_room", refuse)
    code, _, err = command(train, f"output_root={tmp_path}", "-m", f"hydra.sweep.dir={tmp_path}", "seed=0,1")
    assert (code, err) == (1, f"error: cannot write in {tmp_path}: Read-only file system\n")


def test_a_file_that_chooses_a_missing_option_is_named(tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "x.yaml").write_text("# @package _global_\ndefaults: [{override /optimizer: nadm}]\n")
    code, _, err = command(train, "--config-dir", folder.parent, f"output_root={tmp_path / 'root'}", "experiment=x")
    assert code == 1
    assert err.startswith("error: ")
    assert "optimizer/nadm" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("typed", ["~experiment", "~launch"])
def test_a_group_may_be_left_out(typed, tmp_path):
    code, out, err = command(train, f"output_root={tmp_path}", typed, "--cfg", "job")
    assert (code, err) == (0, "")
    assert not OmegaConf.create(out).get(typed[1:])


def test_keys_of_hydra_may_be_new(tmp_path):
    code, out, err = command(train, f"output_root={tmp_path}", "+hydra.job.env_set.OWN=1", "--cfg", "hydra")
    assert (code, err) == (0, "")
    assert OmegaConf.create(out).hydra.job.env_set.OWN == "1"


def test_a_number_is_no_list(tmp_path):
    code, _, err = command(train, f"output_root={tmp_path}", "seed.0=1")
    assert (code, err.partition(";")[0].strip()) == (1, "error: seed.0=1: nothing reads seed.0")


@pytest.mark.parametrize("typed", ["optimizer.alpha=0.9,0.99", "+optimizer.alpha=0.9"])
def test_a_key_of_a_swept_option_is_left_to_the_sweep(typed, tmp_path):
    """It gets as far as the sweeper, which looks at mode=."""
    options = (f"output_root={tmp_path}", "-m", "optimizer=choice(rmsprop)", "mode=x")
    assert command(train, *options, typed)[::2] == (1, "error: mode=x: choose min or max\n")


def test_arguments_that_a_class_takes():
    taken = {"torch.optim.SGD": False, "torch.optim.Missing": True, "types.SimpleNamespace": True}
    assert {name: takes(name, "momentun") for name in taken} == taken  # SimpleNamespace takes any
    assert takes("torch.optim.SGD", "momentum")
