"""The page of a sweep in TensorBoard."""

import fcntl
import itertools
import json
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from runs import command, compose, events, record, resume, scalars, train
from tensorboard.plugins.hparams import metadata
from test_leaderboard import plan, stack
from test_tracker import cells, status

from linear_lab import train as train_entry
from linear_lab.fitting.build import build, build_reference
from linear_lab.sweep import board, page, page_content, results
from linear_lab.sweep.page import refresh, write_page
from linear_lab.sweep.plan import job_fields
from linear_lab.tracking.pictures import of_sweep

TRAINED = [(name, lr) for name in ("sgd", "adam") for lr in ("0.01", "0.1", "0.5")]  # the fixture's jobs as typed


def names(folder):
    """Return the folders of the jobs, in the order of the plan."""
    return board.read(folder).jobs["name"].to_list()


def leaderboard(folder):
    """Return the rows of the page's leaderboard, headings first."""
    (text,) = events(folder / "_sweep").Tensors("leaderboard/text_summary")
    lines = text.tensor_proto.string_val[0].decode().splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [rows[0], *rows[2:]]


def as_job(folder, *overrides):
    """Write to a run's record that it is a job of a sweep."""
    config = page_content.read_config(folder) | {"metric": "val/loss", "mode": "min"}
    job = job_fields(config, overrides, "-".join(overrides))
    (folder / "result.json").write_text(json.dumps(record(folder) | {"job": job}))


def copied(swept, folder, count=2):
    """Some jobs of a sweep, without its plan."""
    for name in names(swept)[:count]:
        shutil.copytree(swept / name, folder / name)
    return [folder / name for name in names(swept)[:count]]


def test_jobs_and_the_two_runs_beside_them(swept):
    jobs = names(swept)
    assert {path.name for path in swept.iterdir() if path.is_dir()} == {*jobs, "_least_squares", "_sweep"}
    statuses = [record(swept / name)["status"] for name in jobs]
    assert statuses == ["completed", "completed", "diverged", "completed", "completed", "completed"]
    for name in ("_least_squares", "_sweep"):
        assert len(list((swept / name).glob("events*"))) == 1
        assert not [tag for tag in events(swept / name).Tags()["tensors"] if "hparams" in tag]  # no HPARAMS row


def test_the_page_shows_rates_paths_and_the_leaderboard(swept):
    found = events(swept / "_sweep")
    assert {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]} == {
        "sweep/lr": [6], "sweep/paths": [6]
    }  # fmt: skip
    rows = leaderboard(swept)
    assert rows[0] == ["rank", "optimizer", "lr", "val/loss", "excess loss", "steps", "status", "seconds", "job"]
    lost = names(swept)[2]
    losses = {name: record(swept / name)["metrics"]["val/loss"] for name in names(swept) if name != lost}
    ranked = sorted(losses, key=losses.get)
    assert [[row[0], row[-1]] for row in rows[1:]] == [
        *([str(k), name] for k, name in enumerate(ranked, 1)),
        ["-", lost],
    ]
    assert [float(row[3]) for row in rows[1:-1]] == pytest.approx([losses[name] for name in ranked], rel=1e-5)
    assert rows[-1][1:-2] == ["sgd", "0.5", "-", "-", str(record(swept / lost)["steps"]), "diverged"]


def test_what_is_drawn_is_what_the_jobs_found(swept, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(page_content, "rates", lambda curves, metric: drawn.update(rates=curves, metric=metric) or b"")
    monkeypatch.setattr(page_content.loss_surface, "paths", lambda *arguments: drawn.update(paths=arguments) or b"")
    monkeypatch.setattr(page_content.RunLogger, "log_picture", lambda *_: None)
    found = board.read(swept)
    page_content.log_page(replace(found, folder=swept), tmp_path / "_sweep")
    assert drawn["metric"] == "val/loss"
    values = [record(swept / name)["metrics"]["val/loss"] for name in names(swept)]
    assert drawn["rates"] == {
        "SGD": [(0.01, values[0]), (0.1, values[1]), (0.5, None)],
        "Adam": [(0.01, values[3]), (0.1, values[4]), (0.5, values[5])],
    }
    loss, optimum, paths = drawn["paths"]
    assert optimum == pytest.approx((2, 0))
    assert loss(np.array([1.0]), np.array([0.0])) == pytest.approx((1 + 4 + 9 + 16) / 4)  # y = 2 x, y_hat = x
    assert {name: len(of_one) for name, of_one in paths.items()} == {"SGD": 3, "Adam": 3}
    ranked = found.ranked.select("name", "optimizer").rows()  # best first, diverged ones last
    for optimizer, of_one in paths.items():
        for name, path in zip([name for name, kind in ranked if kind == optimizer], of_one, strict=True):
            start, end = record(swept / name)["initial"], record(swept / name)["parameters"]
            assert path[0].tolist() == [start["weight"][0][0], start["bias"][0]]
            if name != names(swept)[2]:
                assert path[-1].tolist() == [end["weight"][0][0], end["bias"][0]]
                assert len(path) == 61


def test_least_squares_is_a_line_in_each_chart(swept):
    curves = scalars(swept / "_least_squares")
    wanted = {"train/loss": 0, "val/loss": 0, "test/loss": 0, "param/weight": 2, "param/bias": 0, "train/excess": 0}
    assert curves == {
        tag: [(0, pytest.approx(value, abs=1e-12)), (60, pytest.approx(value, abs=1e-12))]
        for tag, value in wanted.items()
    }


def test_jobs_with_other_data_have_no_common_line(tmp_path):
    for seed in (0, 1):
        folder = tmp_path / f"{seed}-sgd"
        train(folder, "data=synthetic", f"data.seed={seed}", "trainer.max_epochs=1")
        as_job(folder, f"data.seed={seed}")
        write_page(tmp_path)
        assert (tmp_path / "_least_squares").exists() == (seed == 0)  # only while all jobs fit the same data
    rows = leaderboard(tmp_path)
    assert rows[0][:2] == ["rank", "data.seed"]
    assert {(row[1], row[-1]) for row in rows[1:]} == {("0", "0-sgd"), ("1", "1-sgd")}
    (text,) = events(tmp_path / "_sweep").Tensors("leaderboard/text_summary")
    assert b"jobs differ in data.seed, so their losses are not" in text.tensor_proto.string_val[0]
    assert len(list((tmp_path / "_sweep").glob("events*"))) == 1  # the newer file has replaced the older one


def test_least_squares_is_measured_as_runs_are(tmp_path):
    """On noisy, standardized data, the loss of _least_squares is that of the optimum, and no job has a smaller one."""
    table = tmp_path / "t.csv"
    table.write_text("a,b,c\n" + "".join(f"{k},{k * k % 7},{3 * k - (k * k % 7) + k % 5}\n" for k in range(40)))
    overrides = ("data=table", f"data.path={table}", "data.y=[c]", "trainer.max_epochs=1", "optimizer.weight_decay=0.5")
    result = train(tmp_path / "sweep" / "0-sgd", *overrides)
    as_job(tmp_path / "sweep" / "0-sgd", *overrides)
    write_page(tmp_path / "sweep")
    curves = scalars(tmp_path / "sweep" / "_least_squares")
    plain = train(tmp_path / "plain", *overrides[:-1])["optimum"]
    assert curves["train/loss"][0][1] == pytest.approx(plain["train/loss"], rel=1e-5)
    assert curves["param/weight/a"][0][1] == pytest.approx(plain["weight"][0][0])
    assert curves["train/loss"][0][1] < result["metrics"]["train/loss"]


def test_without_event_files_there_is_no_page(tmp_path):
    train(tmp_path / "0-sgd", "logger=none", "trainer.max_epochs=1")
    write_page(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["0-sgd"]


def test_a_page_that_shows_all_there_is_stays(swept, tmp_path):
    _, second = copied(swept, tmp_path)
    second.rename(tmp_path / "_later")
    write_page(tmp_path)
    before = list((tmp_path / "_sweep").glob("events*"))
    assert len(leaderboard(tmp_path)) == 2
    script = (
        "import sys; from linear_lab.sweep.page import write_page\n"
        "write_page(sys.argv[1]); print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("False\n", "")
    assert list((tmp_path / "_sweep").glob("events*")) == before
    (tmp_path / "_later").rename(second)
    write_page(tmp_path)
    assert len(leaderboard(tmp_path)) == 3


def test_between_jobs_it_is_written_only_if_due(swept, tmp_path, monkeypatch):
    copied(swept, tmp_path, 1)
    monkeypatch.setitem(page._written, tmp_path, (time.monotonic() - 90, 5.0))
    write_page(tmp_path, if_due=True)  # 5 s are 5 % of 100 s
    assert not (tmp_path / "_sweep").exists()
    monkeypatch.setitem(page._written, tmp_path, (time.monotonic() - 110, 5.0))
    write_page(tmp_path, if_due=True)
    assert (tmp_path / "_sweep").exists()
    ended, took = page._written[tmp_path]
    assert 0 <= time.monotonic() - ended < took + 60
    assert took > 0


def test_one_process_at_a_time_writes_it(swept, tmp_path):
    copied(swept, tmp_path, 1)
    with (tmp_path / page.LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        write_page(tmp_path, if_due=True)  # between two jobs, it does not wait for the lock
        last = threading.Thread(target=write_page, args=[tmp_path])  # at the end, it does
        last.start()
        last.join(0.5)
        assert last.is_alive()
        assert not (tmp_path / "_sweep").exists()
    last.join()
    assert (tmp_path / "_sweep").exists()


def test_a_page_that_cannot_be_written_costs_no_job(swept, tmp_path, caplog):
    copied(swept, tmp_path, 1)
    (tmp_path / "_sweep").write_text("in the way")
    write_page(tmp_path)
    assert f"the page of {tmp_path} could not be written" in caplog.text


def test_a_config_cut_in_half_costs_one_line_of_the_pictures(swept, tmp_path, monkeypatch):
    first, second = copied(swept, tmp_path)
    (first / ".hydra" / "config.yaml").write_text("data: {x: [1,")
    drawn = []
    monkeypatch.setattr(page_content, "pictures", lambda jobs, _: drawn.append(jobs["name"].to_list()) or {})
    write_page(tmp_path)
    assert drawn.pop() == [second.name, first.name]  # best first
    assert "sweep/paths" in events(tmp_path / "_sweep").Tags()["images"]  # the surface comes from the other config
    assert (tmp_path / "_least_squares").exists()
    told = record(first)
    del told["job"]["problem"]  # as in older records
    (first / "result.json").write_text(json.dumps(told | {"seconds": 1.5}))
    write_page(tmp_path)
    assert drawn.pop() == [second.name]
    assert len(leaderboard(tmp_path)) == 3
    (second / "result.json").unlink()
    write_page(tmp_path)
    assert not drawn
    assert not (tmp_path / "_least_squares").exists()
    assert len(leaderboard(tmp_path)) == 2


def test_a_record_cut_in_half_is_told(swept, tmp_path):
    first, second = copied(swept, tmp_path)
    (first / "result.json").write_text('{"status": ')
    write_page(tmp_path)
    assert [(row[0], row[-3], row[-1]) for row in leaderboard(tmp_path)[1:]] == [
        ("1", "completed", second.name), ("-", "unreadable", first.name)
    ]  # fmt: skip


def test_a_job_that_goes_on_brings_page_and_leaderboard_up_to_date(swept, tmp_path):
    first, _ = copied(swept, tmp_path)
    write_page(tmp_path)
    with refresh(first):
        resume(first, "trainer.max_epochs=70")
    assert scalars(tmp_path / "_least_squares")["train/loss"][-1][0] == 70
    assert ",70,completed," in (tmp_path / "leaderboard.csv").read_text()
    (first / "result.json").write_text(json.dumps(record(first) | {"status": "interrupted"}))
    with pytest.raises(KeyboardInterrupt), refresh(first):
        raise KeyboardInterrupt
    assert ",70,interrupted," in (tmp_path / "leaderboard.csv").read_text()


def test_a_run_that_is_no_job_brings_nothing_about(tmp_path):
    with refresh(tmp_path / "runs" / "a"):
        (tmp_path / "runs" / "a").mkdir(parents=True)
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["a"]


RATES, MOMENTA = (0.4, 0.1, 0.2, 0.3), (0.0, 0.9, 0.5, 0.75, 0.25)  # in no order


def put_grid(folder, *keys, seeds=(None,), axes=(RATES, MOMENTA)):
    """Write a stack of all combinations: the loss is 10 lr + momentum, times the seed; jobs with lr >= 0.4 diverge."""
    jobs = {}
    for one, other, seed in itertools.product(*axes, seeds):
        typed = [f"{keys[0]}={one}", f"{keys[1]}={other}", *([] if seed is None else [f"seed={seed}"])]
        jobs["-".join(typed)] = one, other, 1 if seed is None else seed, typed
    plan(folder, {name: typed for name, (*_, typed) in jobs.items()})
    for name, (one, other, seed, _) in jobs.items():
        lost = one == 0.4
        rest = {"status": "diverged" if lost else "completed", "stable_lr": 0.2 + other / 10, "seed": seed}
        stack(folder, {name: None if lost else (10 * one + other) * seed}, **rest)
    return board.read(folder)


def drawn_map(found, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(page_content, "Map", lambda *given: given)
        return page_content.map_of(found.ranked, found)


def test_a_map_of_two_numbers(tmp_path, monkeypatch):
    found = put_grid(tmp_path, "optimizer.lr", "optimizer.momentum")
    x, y, values, lost, names_, stable = drawn_map(found, monkeypatch)
    assert (x.tolist(), y.tolist()) == (sorted(RATES), sorted(MOMENTA))
    wanted = 10 * x[None, :3] + y[:, None]
    np.testing.assert_allclose(values[:, :3], wanted)
    assert np.isnan(values[:, 3]).all()
    assert lost.tolist() == [[False, False, False, True]] * 5
    assert names_ == ("lr", "momentum", "val/loss")
    np.testing.assert_allclose(stable, [(0.2 + momentum / 10, momentum) for momentum in y])
    picture = page_content.map_of(found.ranked, found)  # the picture has the same values
    shown, grey = picture.axes.collections
    np.testing.assert_allclose(shown.get_array()[:, :3], wanted)
    assert np.ma.getmaskarray(shown.get_array()).tolist() == lost.tolist()
    assert (~np.ma.getmaskarray(grey.get_array())).tolist() == lost.tolist()
    corners = shown.get_coordinates()
    np.testing.assert_allclose(corners[0, :, 0], [0.05, 0.15, 0.25, 0.35, 0.45])
    np.testing.assert_allclose(corners[:, 0, 1], [-0.125, 0.125, 0.375, 0.625, 0.825, 0.975])
    (line,) = [line for name, line in picture.legend if name == "largest stable"]
    np.testing.assert_allclose(line.get_xydata(), stable)
    assert [name for name, _ in picture.legend] == ["diverged", "largest stable"]
    assert all(len(name) <= 14 for name, _ in picture.legend)  # TensorBoard cuts longer names
    assert picture.render("20 runs").startswith(b"\x89PNG")


def test_a_map_with_the_rate_up_the_side(tmp_path, monkeypatch):
    found = put_grid(tmp_path, "optimizer.momentum", "optimizer.lr", axes=((0.0, 0.1, 0.4), RATES))
    x, y, values, lost, names_, stable = drawn_map(found, monkeypatch)
    assert (values.shape, names_) == ((4, 3), ("momentum", "lr", "val/loss"))
    assert lost.tolist() == [[False, False, True]] * 4  # `put_grid` compares the first key with 0.4
    np.testing.assert_allclose(stable[:, 0], x)
    np.testing.assert_allclose(stable[:, 1], 0.2 + y.mean() / 10)


def test_several_seeds_of_a_map_show_their_median(tmp_path, monkeypatch):
    found = put_grid(tmp_path, "optimizer.lr", "optimizer.weight_decay", seeds=(1, 2, 9))
    x, y, values, lost, _, _ = drawn_map(found, monkeypatch)
    np.testing.assert_allclose(values[:, :3], 2 * (10 * x[None, :3] + y[:, None]))
    assert lost[:, 3].all()
    name = "optimizer.lr=0.1-optimizer.weight_decay=0.5-seed=9"
    stack(tmp_path, {name: None}, status="diverged", stable_lr=0.25)
    _, _, values, lost, _, _ = drawn_map(board.read(tmp_path), monkeypatch)
    assert values[2, 0] == pytest.approx(1.5 * 1.5)  # the median of the two completed jobs
    assert not lost[2, 0]


@pytest.mark.parametrize(
    ("keys", "axes"),
    [
        (("optimizer.lr", "optimizer.lr"), (RATES, [""])), (("optimizer.lr", "optimizer.momentum"), (RATES, (0, 0.9))),
        (("optimizer.lr", "optimizer"), (RATES, ("sgd", "adam", "rmsprop"))),
        (("optimizer.lr", "model.bias"), (RATES, ("true", "false", "1"))),
        (("optimizer.lr", "optimizer.momentum"), (RATES, ("0", "nan", "inf", "1"))),
        (("optimizer.lr", "seed"), (RATES, (0, 1, 2))),
    ],
)  # fmt: skip
def test_no_map_of_what_are_not_two_numbers(keys, axes, tmp_path):
    plan(
        tmp_path, {f"{one}-{other}": [f"{keys[1]}={other}", f"{keys[0]}={one}"] for one in axes[0] for other in axes[1]}
    )
    stack(tmp_path, {f"{one}-{other}": 1.0 for one in axes[0] for other in axes[1]})
    found = board.read(tmp_path)
    assert page_content.map_of(found.ranked, found) is None


def test_no_map_where_a_third_key_differs_or_where_most_of_it_is_empty(tmp_path, monkeypatch):
    found = put_grid(tmp_path, "optimizer.lr", "optimizer.momentum")
    plan(tmp_path, {"other": ["optimizer=adam", "optimizer.lr=0.1", "optimizer.momentum=0.5"]})
    stack(tmp_path, {"other": 1.0})
    found = board.read(tmp_path)
    assert page_content.map_of(found.ranked, found) is None
    searched = tmp_path / "search"
    searched.mkdir()
    plan(searched, {str(k): [f"optimizer.lr={k / 7}", f"optimizer.momentum={k / 99}"] for k in range(30)})
    stack(searched, {str(k): 1.0 for k in range(30)})
    found = board.read(searched)
    assert page_content.map_of(found.ranked, found) is None
    hole = tmp_path / "hole"  # a waiting job leaves a hole in the map
    hole.mkdir()
    put_grid(hole, "optimizer.lr", "optimizer.momentum")
    results.remove_rows(hole, pl.Series("name", ["optimizer.lr=0.2-optimizer.momentum=0.5"]))
    found = board.read(hole)
    ended = replace(found, jobs=found.jobs.filter(pl.col("status") != "waiting"))
    _, _, values, lost, _, _ = drawn_map(ended, monkeypatch)
    assert np.argwhere(np.isnan(values) & ~lost).tolist() == [[2, 1]]


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        (np.arange(0.001, 0.301, 0.001), False), (np.arange(1, 1001.0), False), (np.geomspace(1e-4, 1, 9), True),
        (np.array([0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1]), True), (np.array([0, 0.01, 0.1, 1]), False),
        (np.array([-1.0, 1, 100]), False), (np.array([1.0, 2, 4, 8]), False),
    ],
)  # fmt: skip
def test_an_axis_is_logarithmic_where_that_spaces_it_more_evenly(values, logarithmic):
    assert of_sweep.is_wide(values) == logarithmic
    edges = of_sweep.edges_of(values)
    assert (np.diff(edges) > 0).all()
    assert ((edges[:-1] < values) & (values < edges[1:])).all()
    ones, none = np.ones((3, len(values))), np.zeros((3, len(values)), bool)
    drawn = of_sweep.Map(values, values[:3], ones, none, ("x", "y", "z"), np.zeros((0, 2)))
    assert drawn.axes.get_xscale() == ("log" if logarithmic else "linear")
    assert drawn.axes.get_xlim() == pytest.approx((edges[0], edges[-1]))


@pytest.fixture(scope="module")
def stacked(once):
    """The sweep of `swept`, trained in stacks."""

    def train_stacked(root):
        typed = ("optimizer=sgd,adam", "optimizer.lr=0.01,0.1,0.5", "seed=3", "trainer.max_epochs=60")
        options = ("launch=stacked", "hydra.launcher.keep=0", "name=stacked")
        assert command(train_entry, "-m", f"output_root={root}", *typed, *options)[0] == 0

    return once("stacked of page", train_stacked) / "sweeps" / "stacked"


def trial(folder):
    """Return the Trial ID of a row on the HPARAMS page."""
    content = events(folder).SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    return metadata.parse_session_start_info_plugin_data(content).group_name


def test_rows_of_stacks_are_those_of_the_same_jobs_alone(swept, stacked):
    jobs = names(swept)
    assert sorted(path.name for path in (stacked / "_rows").iterdir()) == sorted(jobs)
    for name in jobs:
        row, alone = stacked / "_rows" / name, swept / name
        assert cells(row) == cells(alone)
        assert status(row) == status(alone) == ("FAILURE" if name == jobs[2] else "SUCCESS")
        found, wanted = scalars(row), {tag: points for tag, points in scalars(alone).items() if tag.startswith("hp/")}
        assert set(found) == set(wanted)
        for tag, points in found.items():
            assert [step for step, _ in points] == [wanted[tag][-1][0]]  # only the final values
            assert points[-1][1] == pytest.approx(wanted[tag][-1][1], rel=1e-5, abs=1e-9), (name, tag)
    folders = [*(stacked / "_rows" / name for name in jobs), *(swept / name for name in jobs)]
    assert len({trial(folder) for folder in folders}) == len(folders)  # TensorBoard merges no rows


def test_the_page_of_stacks_shows_the_same_table_and_rates(swept, stacked):
    assert set(events(stacked / "_sweep").Tags()["images"]) == {"sweep/lr"}  # paths are of jobs that have run folders
    rows, wanted = leaderboard(stacked), leaderboard(swept)
    assert rows[0] == wanted[0]
    assert [row[0] for row in rows] == [row[0] for row in wanted]
    assert [row[-1] for row in rows[1:]] == [row[-1] for row in wanted[1:]]
    assert [row[1:3] + row[5:7] for row in rows] == [row[1:3] + row[5:7] for row in wanted]
    assert not (stacked / "_least_squares").exists()


def test_what_failed_or_waits_has_no_row(tmp_path):
    table = tmp_path / "t.csv"
    table.write_text("a,b\n" + "".join(f"{k},{3 * k}\n" for k in range(20)))
    study = tmp_path / "sweeps" / "study"
    study.mkdir(parents=True)
    plan(study, {"waits": ["seed=7", "data=table", f"data.path={table}", "data.y=[b]"]})
    typed = ("data=table", f"data.path={table}", "data.y=[b],[c]", "seed=0,1", "launch=stacked")  # there is no column c
    options = (f"output_root={tmp_path}", "name=study", "hydra.launcher.keep=0", "trainer.max_epochs=2")
    code, out, errors = command(train_entry, "-m", *typed, *options)
    assert code == 1, errors
    assert "Traceback" not in out + errors
    found = board.read(study)
    assert found.counts == {"waiting": 1, "completed": 2, "failed": 2}
    completed = found.jobs.filter(status="completed")["name"].to_list()
    assert sorted(path.name for path in (study / "_rows").iterdir()) == sorted(completed)


def test_an_error_of_a_users_class_costs_no_job(swept, tmp_path, monkeypatch, caplog):
    def fail(*_):
        raise AttributeError("of a user's class")

    copied(swept, tmp_path, 1)
    monkeypatch.setattr(page_content, "log_page", fail)
    write_page(tmp_path)
    assert f"the page of {tmp_path} could not be written" in caplog.text
    assert "AttributeError: of a user's class" in caplog.text  # the log has the traceback


def test_pictures_of_a_grid_are_rates_and_a_map(tmp_path):
    found = put_grid(tmp_path, "optimizer.lr", "optimizer.momentum")
    drawn = page_content.pictures(found.ranked, found)
    assert set(drawn) == {"lr", "map"}
    assert all(png[:4] == b"\x89PNG" for png in drawn.values())
    without = found.ranked.with_columns(lr=pl.lit(None, pl.Float64))
    assert set(page_content.pictures(without, found)) == {"map"}


def test_a_map_without_stable_rates_has_no_line(tmp_path, monkeypatch):
    found = put_grid(tmp_path, "optimizer.lr", "optimizer.momentum")
    without = found.ranked.with_columns(stable_lr=pl.lit(None, pl.Float64))
    monkeypatch.setattr(page_content, "Map", lambda *given: given)
    *_, stable = page_content.map_of(without, found)
    assert stable.shape == (0, 2)


def test_an_empty_path_is_left_out(swept, tmp_path):
    (folder,) = copied(swept, tmp_path, 1)
    found = board.read(tmp_path)
    ((path,),) = page_content.paths_of(found.ranked, found).values()
    assert path.shape[1] == 2
    file = folder / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(file, weights_only=True)
    checkpoint["callbacks"]["Tracker"]["path"] = []
    torch.save(checkpoint, file)
    assert page_content.paths_of(found.ranked, found) == {}


@pytest.mark.parametrize("bias", ["true", "false"])
def test_metrics_of_least_squares_are_those_of_its_line(bias):
    cfg = compose(f"model.bias={bias}", "data=synthetic", "data.features=2")
    data, model = build(cfg)
    optimum = build_reference(cfg, data, model).optimum
    metrics = page_content.metrics_of_optimum(data, model, optimum)
    for part, (x, y) in data.parts.items():
        line = x.numpy() @ optimum.solution[:2].numpy() + (optimum.solution[2].numpy() if bias == "true" else 0)
        assert metrics[f"{part}/loss"] == pytest.approx(np.mean((line - y.numpy()) ** 2), rel=1e-4)
    assert metrics["train/loss"] == pytest.approx(optimum.loss, rel=1e-4)
