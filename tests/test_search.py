"""A search: its ranges, its learning, the same draws after a kill, and pruning."""

import logging
import math
import re
import sqlite3
import statistics
import sys
from contextlib import ExitStack, closing
from pathlib import Path

import optuna
import pytest
import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages import RDBStorage
from runs import command

from linear_lab import UserError
from linear_lab import train as entry
from linear_lab.sweep import search
from linear_lab.sweep.search import Search, draw, prune_check
from linear_lab.sweep.search_sweeper import space

LR = "optimizer.lr=tag(log,interval(1e-4,1))"


def parsed(*overrides):
    return OverridesParser.create().parse_overrides(list(overrides))


SPACE = space(parsed("data=toy", "optimizer=sgd,adam", LR))[1]


def loss(params):
    """Return a loss that is quadratic in the logarithm of lr, with its minimum at 0.01."""
    return (math.log10(float(params["optimizer.lr"])) + 2) ** 2 + 0.3 * (params["optimizer"] == "adam")


def opened(folder, trials=10, mode="min", **other):
    given = {"fixed": ["data=toy"], "searched": SPACE, "metric": "val/loss", "seed": 3} | other
    return Search(folder, mode=mode, trials=trials, **given)


def completed(overrides):
    value = loss(dict(override.split("=") for override in overrides))
    return {"status": "completed", "metrics": {"val/loss": value}}


def finish(study, n=1):
    """Run the remaining trials, and return them."""
    ran = {}
    while batch := study.ask(n):
        for number, overrides in batch:
            assert number not in ran
            ran[number] = overrides
            study.tell(number, completed(overrides))
    study.close()
    return ran


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The trials of a search that was not killed, for one worker and for three."""
    return {n: finish(opened(tmp_path_factory.mktemp("search")), n) for n in (1, 3)}


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("a=interval(1e-4,1)", "FloatDistribution(high=1.0, log=False, low=0.0001, step=None)"),
        ("a=tag(log, interval(1e-4, 1))", "FloatDistribution(high=1.0, log=True, low=0.0001, step=None)"),
        ("a=interval(2,2)", "FloatDistribution(high=2.0, log=False, low=2.0, step=None)"),
        ("a=int(interval(1,9))", "IntDistribution(high=9, log=False, low=1, step=1)"),
        ("a=tag(log,int(interval(1,9)))", "IntDistribution(high=9, log=True, low=1, step=1)"),
        ("a=range(1,9)", "IntDistribution(high=8, log=False, low=1, step=1)"),
        ("a=range(1,9,3)", "IntDistribution(high=7, log=False, low=1, step=3)"),
        ("a=range(9,1,-4)", "IntDistribution(high=9, log=False, low=5, step=4)"),
        ("a=range(0.1,0.5,0.1)", "FloatDistribution(high=0.4, log=False, low=0.1, step=0.1)"),
        ("a=choice(sgd,adam,sgd)", "CategoricalDistribution(choices=('sgd', 'adam'))"),
        (
            "+a@b='x y',1,null,[1,2],{c:d}",
            "CategoricalDistribution(choices=(\"'x y'\", '1', 'null', '[1,2]', '{c:d}'))",
        ),
    ],
)
def test_what_is_typed_is_what_is_searched(override, meant):
    fixed, searched = space(parsed("data=toy", override, "~x"))
    assert fixed == ["data=toy", "~x"]
    assert {key: repr(value) for key, value in searched.items()} == {override.partition("=")[0]: meant}


def test_of_two_overrides_with_one_key_the_last_counts():
    fixed, searched = space(parsed("optimizer=choice(sgd,adam)", LR, "optimizer.lr=0.1"))
    assert fixed == ["optimizer.lr=0.1"]
    assert list(searched) == ["optimizer"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("a=1", "there is no range; give one"),
        ("a=glob(*)", r"a=glob\(\*\): a pattern.*choice\(sgd,adam\)"),
        ("a=tag(log,interval(0,1))", "above 0 have a logarithm; raise the lower bound"),
        ("a=interval(2,1)", "it has no value; the lower bound comes first"),
        ("a=range(4,4)", "it has no value"),
        ("a=range(1,4,0)", "the step must not be 0"),
        ("a=interval(nan,1)", "not finite"),
        ("a=interval(0,inf)", "not finite"),
        ("a=tag(ln,interval(1,2))", "there is no tag ln; try"),
        ("a=tag(log,choice(1,2))", "categories have no logarithm"),
        ("a=tag(log,range(1,9))", r"allows no step; try tag\(log,int\(interval"),
    ],
)
def test_what_cannot_be_searched_is_refused_with_a_remedy(override, message):
    with pytest.raises(UserError, match=message):
        space(parsed(override))


def test_the_ready_made_search_has_a_space():
    sweeper = yaml.safe_load(Path("conf/sweep/search.yaml").read_text())["hydra"]["sweeper"]
    _, searched = space(parsed(*(f"{key}={value}" for key, value in sweeper["params"].items())))
    assert searched == SPACE


@given(value=st.floats(allow_nan=False, allow_infinity=False) | st.integers())
def test_a_number_is_read_back_as_the_same_number(value):
    (override,) = parsed(f"a={search.as_text(value)}")
    assert override.value() == value
    assert type(override.value()) is type(value)


def test_it_finds_more_than_as_many_uniform_draws(monkeypatch):
    def best(seed):
        told = []
        for number in range(20):
            params = draw(SPACE, "max", f"{seed}/{number}", told)
            told.append(optuna.trial.create_trial(value=-loss(params), params=params, distributions=SPACE))
        return -max(trial.value for trial in told)

    learned = statistics.median(map(best, range(5)))
    monkeypatch.setattr(search, "STARTUP", 100)
    assert learned < 0.5 * statistics.median(map(best, range(5)))


@pytest.mark.parametrize("n", [1, 3])
def test_a_killed_search_draws_the_trials_of_one_that_was_not(tmp_path, uninterrupted, monkeypatch, n):
    """The process is killed before its eighth, ninth or tenth write to the database."""
    left = []

    def killable(name):
        write = getattr(RDBStorage, name)

        def killed_or_not(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return write(*args, **kwargs)

        return killed_or_not

    for name in ("_create_new_trial", "set_trial_user_attr", "set_study_user_attr", "set_trial_state_values"):
        monkeypatch.setattr(RDBStorage, name, killable(name))
    ran, kills = {}, 0
    while kills < 100:
        left[:] = [7 + kills % 3]
        study = None
        try:
            study = opened(tmp_path)
            while batch := study.ask(n):
                for number, overrides in batch:
                    assert ran.setdefault(number, overrides) == overrides
                    study.name(number, f"job{number}")
                for number, overrides in reversed(batch):
                    study.tell(number, completed(overrides))
            break
        except KeyboardInterrupt:
            kills += 1
        finally:
            if study:
                study.close()
    assert 5 <= kills < 100
    assert ran == uninterrupted[n]


@pytest.mark.parametrize("n", [1, 3])
def test_a_search_that_grows_draws_the_trials_of_one_that_was_as_large_at_once(tmp_path, uninterrupted, n):
    assert finish(opened(tmp_path, trials=7), n) | finish(opened(tmp_path), n) == uninterrupted[n]


def test_trials_differ(uninterrupted):
    for ran in uninterrupted.values():
        assert list(ran) == list(range(10))
        assert len({overrides[1] for overrides in ran.values()}) == 10


def test_a_failed_trial_is_left_by_this_process_and_tried_again_by_the_next(tmp_path, uninterrupted):
    study = opened(tmp_path, trials=3)
    for status in ("failed", "interrupted"):
        ((number, _),) = study.ask()
        study.tell(number, {"status": status})
    assert [number for number, _ in study.ask()] == [2]
    study.tell(2, completed(uninterrupted[1][2]))
    assert study.ask() == []
    study.close()
    study = opened(tmp_path, trials=3)
    assert study.ask(3) == [(number, uninterrupted[1][number]) for number in (0, 1)]
    study.close()


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_a_diverged_trial_counts_as_the_worst_and_the_search_learns_from_it(tmp_path, mode, worst):
    study = opened(tmp_path, mode=mode, trials=9)
    for number in range(9):
        ((number, overrides),) = study.ask()
        diverges = float(overrides[1].partition("=")[2]) > 1e-2
        nothing = [("diverged", None), ("completed", math.nan), ("completed", None)][number % 3]
        record = {"status": nothing[0], "metrics": {"val/loss": nothing[1]}} if diverges else completed(overrides)
        study.tell(number, record)
        study.tell(number, {"status": "completed", "metrics": {"val/loss": 0.0}})  # these have a result already
        assert (study.study.trials[number].value == worst) == diverges
    assert worst in {trial.value for trial in study.study.trials}
    assert math.isfinite(study.study.best_value)
    study.close()


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"seed": 4}, "hydra.sweeper.seed=3, but this command has hydra.sweeper.seed=4"),
        ({"fixed": ["data=table"]}, "data=toy, but this command has data=table; .*choose another name="),
        ({"searched": {"optimizer.lr": SPACE["optimizer.lr"]}}, "optimizer=Cat.*, but this command has optimizer=-"),
        ({"mode": "max"}, "mode=min, but this command has mode=max"),
    ],
)
def test_another_search_under_the_same_name_is_refused_with_the_difference(study1, other, message):
    with pytest.raises(UserError, match=f"name=study1: its search has {message}"):
        opened(study1, **other)
    opened(study1).close()


@pytest.fixture(scope="module")
def study1(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweeps") / "study1"
    folder.mkdir()
    opened(folder).close()
    return folder


def test_two_processes_do_not_search_under_one_name(study1, monkeypatch):
    monkeypatch.setattr("linear_lab.runs.atomic.LOCK_TIMEOUT", 0)
    first = opened(study1)
    with pytest.raises(UserError, match="another process searches here; wait"):
        opened(study1)
    first.close()
    opened(study1).close()


def test_a_broken_database_is_named_with_the_remedy(tmp_path):
    (tmp_path / "search.db").write_text("no database " * 100)
    with pytest.raises(UserError, match=r"search.db: it cannot be used \(.*not a database\).*delete it"):
        opened(tmp_path)
    (tmp_path / "search.db").unlink()
    opened(tmp_path).close()


def test_a_folder_may_be_called_anything_and_nothing_is_said(tmp_path, capfd):
    logging.getLogger("alembic").setLevel(logging.INFO)
    folder = tmp_path / "a {b} ?c=1&%20#ü"
    folder.mkdir()
    study = opened(folder)
    study.ask()
    study.close()
    assert [path.name for path in sorted(folder.iterdir())] == ["search.db", "search.lock"]
    assert capfd.readouterr() == ("", "")
    assert not logging.getLogger("alembic.runtime.migration").isEnabledFor(logging.INFO)


@pytest.mark.parametrize("typed", ["sweep=search", "hydra/sweeper=search"])
def test_without_optuna_its_install_command_is_named(typed, monkeypatch, tmp_path):
    for name in [name for name in sys.modules if name.startswith("linear_lab.sweep.search")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "optuna", None)
    code, out, errors = command(entry, "-m", f"output_root={tmp_path}", typed, LR)
    assert (code, out, errors.count("\n")) == (1, "", 1)
    assert re.match(r"error: sweep=search: .*python -m pip install -e '\.\[search\]'", errors)


CURVE = range(10, 110, 10)  # the steps of the validations


def run(study, height, curve=CURVE):
    """Run a trial whose loss falls from 1 to ``height``; return the step at which it is pruned."""
    ((number, _),) = study.ask()
    job = study.folder / f"job{number}"
    job.mkdir()
    study.name(number, job.name)
    hopeless = prune_check(study.folder, job.name)
    stopped = next((step for step in curve if hopeless(step, height + (1 - height) * 0.9 ** (step / 10))), None)
    status = "pruned" if stopped else "completed"
    study.tell(number, {"status": status, "metrics": {"val/loss": height}})
    return stopped


@pytest.fixture(scope="module")
def five(tmp_path_factory):
    """A search with five completed trials; the sixth runs in the folder job5."""
    study = opened(tmp_path_factory.mktemp("search"))
    assert [run(study, height) for height in (0.9, 0.3, 0.2, 0.9)] == [None] * 4
    assert run(study, 0.1, range(10, 310, 10)) is None
    study.ask()
    (study.folder / "job5").mkdir()
    study.name(5, "job5")
    study.close()
    return study.folder


def reporting(folder, *curve):
    """Return the answers of `prune_check` for a run that continues in job5."""
    hopeless = prune_check(folder, "job5")
    return [hopeless(step, value) for step, value in curve]


@pytest.fixture
def job5(five):
    yield five
    (five / "job5" / "reports.jsonl").unlink(missing_ok=True)


def test_a_hopeless_run_is_stopped_once_it_was_measured_often_enough(job5):
    assert reporting(job5, *((step, 0.99) for step in CURVE)) == [False] * 5 + [True] * 5


def test_a_run_that_is_no_worse_than_the_median_goes_on(job5):
    median = [(step, 0.3 + 0.7 * 0.9 ** (step / 10)) for step in CURVE]
    assert not any(reporting(job5, *median))
    assert reporting(job5, *((step, value + 1e-9) for step, value in median)) == [False] * 5 + [True] * 5


def test_a_run_is_not_judged_where_fewer_were_measured(job5):
    assert not any(reporting(job5, *((step, 0.99) for step in range(110, 310, 10))))


def test_a_run_that_goes_on_from_a_checkpoint_is_judged_as_one_that_was_not_killed(job5):
    curve = [(step, 0.25 if step == 80 else 0.99) for step in CURVE]
    whole = reporting(job5, *curve)
    assert whole == [False] * 5 + [True, True, False, False, False]  # step 80 is good again
    (job5 / "job5" / "reports.jsonl").unlink()
    reporting(job5, *curve[:8])
    with (job5 / "job5" / "reports.jsonl").open("a") as file:
        file.write("[90, 0.")  # as a process that is killed while it writes
    assert reporting(job5, *curve[4:]) == whole[4:]


def test_what_is_not_finite_is_not_reported(job5):
    assert reporting(job5, (10, math.nan), (20, math.inf)) == [False, False]
    assert not (job5 / "job5" / "reports.jsonl").exists()


def test_trials_of_the_same_batch_do_not_judge_each_other(tmp_path):
    study = opened(tmp_path)
    batch = study.ask(7)
    for number, overrides in batch:
        (tmp_path / f"job{number}").mkdir()
        study.name(number, f"job{number}")
        hopeless = prune_check(tmp_path, f"job{number}")
        assert not any(hopeless(step, 0.1 + number) for step in CURVE)
        study.tell(number, completed(overrides))
    study.close()


def test_a_pruned_trial_is_learned_from_by_what_it_measured(five, monkeypatch):
    hopeless = prune_check(five, "job5")
    for step in (10, 20):
        hopeless(step, 0.5)
    study = opened(five)
    study.tell(5, {"status": "pruned", "metrics": {"val/loss": 0.4}})
    trial = search.with_reports(study.study.trials[5])
    study.close()
    assert trial.state == optuna.trial.TrialState.PRUNED
    assert trial.intermediate_values == {10: 0.5, 20: 0.5}


def test_a_run_whose_study_is_gone_is_not_stopped(tmp_path):
    (tmp_path / "job5").mkdir()
    assert not any(reporting(tmp_path, *((step, 0.99) for step in CURVE)))
    assert not (tmp_path / "search.db").exists()


def change(*statements):
    def damage(folder):
        with closing(sqlite3.connect(folder / "search.db")) as database, database:
            for statement in statements:
                database.execute(statement)

    return damage


CATEGORY = """'{"name": "CategoricalDistribution", "attributes": {"choices": ["sgd", "+trust=os"]}}'"""
CHANGED = {
    "another category": change(
        f"UPDATE trial_params SET distribution_json={CATEGORY}, param_value=1 WHERE param_name='optimizer'"
    ),
    "a text for a number": change("UPDATE trial_params SET param_value='1 x' WHERE param_name='optimizer.lr'"),
    "a number outside": change("UPDATE trial_params SET param_value=7 WHERE param_name='optimizer.lr'"),
    "no such category": change("UPDATE trial_params SET param_value=7 WHERE param_name='optimizer'"),
    "another key": change("UPDATE trial_params SET param_name='hydra.run.dir' WHERE param_name='optimizer'"),
    "a key less": change("DELETE FROM trial_params WHERE param_name='optimizer'"),
    "no distribution": change("UPDATE trial_params SET distribution_json='5'"),
    "another state": change("UPDATE trials SET state='NONE'"),
    "waiting": change("UPDATE trials SET state='WAITING'"),
    "another number": change("UPDATE trials SET number=4"),
    "no number": change("UPDATE trials SET number=NULL"),
    "no batch": change("DELETE FROM trial_user_attributes"),
    "a text for a batch": change("UPDATE trial_user_attributes SET value_json='\"x\"' WHERE key='batch'"),
    "no JSON": change("UPDATE trial_user_attributes SET value_json='{'"),
    "reports of nothing": change("INSERT INTO trial_user_attributes VALUES (99, 1, 'reports', '[[1, [2]]]')"),
    "a list for a description": change("UPDATE study_user_attributes SET value_json='[1]'"),
    "another direction": change("UPDATE study_directions SET direction='NONE'"),
    "two directions": change("INSERT INTO study_directions VALUES (99, 'MINIMIZE', 1, 1)"),
    "another version": change(
        "UPDATE version_info SET schema_version='x'", "UPDATE alembic_version SET version_num='x'"
    ),
}


@pytest.mark.parametrize("damage", CHANGED)
def test_what_is_not_of_this_search_is_refused(damage, tmp_path):
    study = opened(tmp_path)
    study.ask()
    study.close()
    CHANGED[damage](tmp_path)
    with pytest.raises(UserError, match=r"search.db: it cannot be used \(.*delete it"), ExitStack() as resources:
        study = opened(tmp_path)
        resources.callback(study.close)
        study.ask()


def test_a_journal_that_names_a_file_deletes_none(tmp_path):
    opened(tmp_path).close()
    journal = tmp_path / "search.db-journal"
    journal.write_bytes(bytes(512) + bytes.fromhex("d9d505f920a163d7"))
    with pytest.raises(UserError, match=r"search\.db-journal: it would make SQLite delete another file; delete"):
        opened(tmp_path)
    journal.unlink()
    (tmp_path / "kept").write_text("kept")
    (tmp_path / "search.lock").unlink()
    (tmp_path / "search.lock").hardlink_to(tmp_path / "kept")
    opened(tmp_path).close()
    assert (tmp_path / "kept").read_text() == "kept"


@pytest.mark.parametrize("line", [b"\xff\xfe", b"[" * 20_000, b'["a", 1]', b"[1, [2]]", b"[1e999, 2]", b"{}", b"3"])
def test_a_line_that_is_no_report_is_left_out(line, tmp_path):
    (tmp_path / "reports.jsonl").write_bytes(b"[1, 0.5]\n" + line + b"\n[2, 0.25]\n")
    assert search.read_reports(tmp_path) == {1: 0.5, 2: 0.25}


def test_a_search_without_a_direction_is_refused(tmp_path):
    opened(tmp_path).close()
    change("UPDATE study_directions SET direction='NOT_SET'")(tmp_path)
    with pytest.raises(UserError, match=r"search.db: it cannot be used \(.*it has no direction.*delete it"):
        opened(tmp_path)
