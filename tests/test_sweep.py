"""A sweep's own page in TensorBoard."""

import shutil

import pytest
from runs import events, record, resume, scalars, train

from linear_lab import run, sweep
from linear_lab.sweep import Job, leaderboard, read_jobs, write_page

NAMES = [f"{k}-{name}-lr={lr}" for k, (name, lr) in enumerate(
    (name, lr) for name in ("sgd", "adam") for lr in ("0.01", "0.1", "0.5"))]  # fmt: skip


def test_jobs_and_the_two_runs_beside_them(swept):
    folders = sorted(path.name for path in swept.iterdir() if path.is_dir())
    assert folders == [*NAMES, "_least_squares", "_sweep"]
    statuses = [record(swept / name)["status"] for name in NAMES]
    assert statuses == ["completed", "completed", "diverged", "completed", "completed", "completed"]
    for name in ("_least_squares", "_sweep"):
        assert len(list((swept / name).glob("events*"))) == 1
        assert not [tag for tag in events(swept / name).Tags()["tensors"] if "hparams" in tag]  # no row


def test_the_page_shows_rates_paths_and_the_leaderboard(swept):
    found = events(swept / "_sweep")
    assert {tag: [image.step for image in found.Images(tag)] for tag in found.Tags()["images"]} == {
        "sweep/lr": [6], "sweep/paths": [6]
    }  # fmt: skip
    (text,) = found.Tensors("leaderboard/text_summary")
    rows = [[cell.strip() for cell in line.strip("|").split("|")]
            for line in text.tensor_proto.string_val[0].decode().splitlines()]  # fmt: skip
    assert rows[0] == ["rank", "optimizer", "lr", "val/loss", "excess loss", "steps", "status", "job"]
    losses = {name: record(swept / name)["metrics"]["val/loss"] for name in NAMES if "sgd-lr=0.5" not in name}
    ranked = sorted(losses, key=losses.get)
    assert [[row[0], row[-1]] for row in rows[2:]] == [
        *([str(k), name] for k, name in enumerate(ranked, 1)), ["-", NAMES[2]]
    ]  # fmt: skip
    assert [float(row[3]) for row in rows[2:-1]] == pytest.approx([losses[name] for name in ranked], rel=1e-3)
    assert rows[-1][1:-1] == ["sgd", "0.5", "-", "-", str(record(swept / NAMES[2])["steps"]), "diverged"]


def test_what_is_drawn_is_what_the_jobs_found(swept, monkeypatch):
    drawn = {}
    monkeypatch.setattr(sweep.figures, "rates", lambda curves, metric: drawn.update(rates=curves, metric=metric))
    monkeypatch.setattr(sweep.surfaces, "paths", lambda *arguments: drawn.update(paths=arguments))
    jobs = read_jobs(swept)
    data, model = sweep.build(sweep.OmegaConf.create(jobs[0].config))
    sweep.pictures(jobs, data, model, sweep.least_squares_reference(data, model))
    assert drawn["metric"] == "val/loss"
    values = [record(swept / name)["metrics"]["val/loss"] for name in NAMES]
    assert drawn["rates"] == {
        "SGD": [(0.01, values[0]), (0.1, values[1]), (0.5, None)],
        "Adam": [(0.01, values[3]), (0.1, values[4]), (0.5, values[5])],
    }
    loss, optimum, paths = drawn["paths"]
    assert optimum == pytest.approx((2, 0))
    assert loss(1.0, 0.0) == pytest.approx((1 + 4 + 9 + 16) / 4)  # y = 2 x, y_hat = x
    assert [len(of_one) for of_one in paths.values()] == [3, 3]
    for name, path in zip(NAMES, [*paths["SGD"], *paths["Adam"]], strict=True):
        start = record(swept / name)["initial"]
        assert path[0].tolist() == [start["weight"][0][0], start["bias"][0]]
    end = record(swept / NAMES[4])["parameters"]
    assert paths["Adam"][1][-1].tolist() == [end["weight"][0][0], end["bias"][0]]
    assert len(paths["Adam"][1]) == 61


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
        (folder / run.OVERRIDES).write_text(f"- data.seed={seed}\n")
        write_page(tmp_path)
        assert (tmp_path / "_least_squares").exists() == (seed == 0)  # only as long as all fit the same data
    board = [
        line.strip("| ").split(" | ") for line in leaderboard(read_jobs(tmp_path), read_jobs(tmp_path)[:1]).splitlines()
    ]
    assert board[0][:2] == ["rank", "data.seed"]
    assert [(row[0], row[1], row[-1]) for row in board[2:]] == [("1", "0", "0-sgd"), ("-", "1", "1-sgd")]
    write_page(tmp_path)
    assert len(list((tmp_path / "_sweep").glob("events*"))) == 1  # the newer in place of the older


def test_least_squares_is_measured_as_runs_are(tmp_path):
    """On noisy, standardized data of two features its loss is the optimum's, and no job's is below it."""
    table = tmp_path / "t.csv"
    table.write_text("a,b,c\n" + "".join(f"{k},{k * k % 7},{3 * k - (k * k % 7) + k % 5}\n" for k in range(40)))
    overrides = ("data=table", f"data.path={table}", "data.y=[c]", "trainer.max_epochs=1", "optimizer.weight_decay=0.5")
    result = train(tmp_path / "sweep" / "0-sgd", *overrides)
    (tmp_path / "sweep" / "0-sgd" / run.OVERRIDES).write_text("[]")
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


def test_a_page_that_cannot_be_written_costs_no_job(swept, tmp_path, caplog):
    shutil.copytree(swept / NAMES[0], tmp_path / "0-sgd")
    (tmp_path / "_sweep").write_text("in the way")
    write_page(tmp_path)
    assert f"the page of {tmp_path} could not be written" in caplog.text


def test_a_config_cut_in_half_costs_no_job(swept, tmp_path):
    for name in NAMES[:2]:
        shutil.copytree(swept / name, tmp_path / name)
    (tmp_path / NAMES[0] / ".hydra" / "config.yaml").write_text("data: {x: [1,")
    assert [job.folder.name for job in read_jobs(tmp_path)] == [NAMES[1]]


def test_a_job_that_goes_on_brings_the_page_up_to_date(swept, tmp_path):
    for name in NAMES[:2]:
        shutil.copytree(swept / name, tmp_path / name)
    write_page(tmp_path)
    with sweep.refresh(tmp_path / NAMES[0]):
        resume(tmp_path / NAMES[0], "trainer.max_epochs=70")
    assert scalars(tmp_path / "_least_squares")["train/loss"][-1][0] == 70
    with sweep.refresh(swept / "runs" / "no-job"):
        pass
    assert not (swept / "runs").exists()


def test_a_record_cut_in_half_is_left_out(swept, tmp_path):
    for name in NAMES[:2]:
        shutil.copytree(swept / name, tmp_path / name)
    (tmp_path / NAMES[0] / "result.json").write_text('{"status": ')
    assert [job.folder.name for job in read_jobs(tmp_path)] == [NAMES[1]]


def test_higher_is_better_where_the_mode_says_so(tmp_path):
    def job(name, value, status="completed"):
        found = {"metrics": {"val/accuracy": value}, "status": status, "steps": 1, "excess_loss": None}
        return Job(tmp_path / name, found, {"metric": "val/accuracy", "mode": "max"}, {"seed": name})

    jobs = [job("a", 0.5), job("b", 0.9), job("c", 1.0, "failed")]
    board = leaderboard(jobs, jobs)
    assert [line.split(" | ")[1] for line in board.splitlines()[2:]] == ["b", "a", "c"]  # the seeds


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        (["optimizer=adam", "optimizer.lr=0.1", "seed=2"], "7-adam-lr=0.1-seed=2"),
        (["data.path=../x y.csv", "+trainer.max_time=00:00:01"], "7-adam-path=.._x_y.csv-max_time=00_00_01"),
        (["same=/tmp", "data.x=[a,b]"], "7-adam-x=_a_b_"),
        (["data.y=[" + "c" * 300 + "]"], ("7-adam-y=_" + "c" * 300)[: run.LONGEST_NAME]),
    ],
)  # fmt: skip
def test_a_jobs_folder_says_what_was_typed(overrides, name):
    assert run.job_name(7, "adam", overrides, ["same"]) == name
