"""The dashboard as its user meets it: over HTTP, and in a browser."""

import os
import shutil
from collections import Counter

import pytest
from browser import (
    ask,
    chromium,
    complaints,
    count,
    missing,
    pinned,
    read,
    served,
    sort,
    stable,
    trials,
    view,
    visit,
)
from omegaconf import OmegaConf
from runs import record
from test_tracker import cells

from linear_lab.tracking import hparams

pytestmark = pytest.mark.slow("drives Chromium; test_tracker and test_dashboard read what it shows")

SIZE = 1500, 2400  # of the window: what is out of sight is not drawn
KILLED = "killed-adam"
EVERY_ROW = {
    "startIndex": 0,
    "sliceSize": 1000,
    "allowedStatuses": [f"STATUS_{name}" for name in ("UNKNOWN", "SUCCESS", "FAILURE", "RUNNING")],
    "aggregationType": "AGGREGATION_AVG",
    "colParams": [],
}


def trial_ids(names, folder):
    """How the rows of jobs begin on HPARAMS."""
    return [hparams.trial(folder / name) for name in names]


def jobs(folder):
    """The names of jobs, in the order in which they ran."""
    return sorted(path.parent.name for path in folder.glob("*/result.json"))


def hyperparameters(folder):
    """The five that every row has, of the config that the job was run with."""
    config = OmegaConf.load(folder / ".hydra" / "config.yaml")
    momentum = config.optimizer.get("momentum")
    return {
        "optimizer": config.optimizer._target_.rpartition(".")[2],
        "lr": config.optimizer.lr,
        "momentum": "-" if momentum is None else f"{momentum:g}",
        "batch_size": config.data.get("batch_size") or record(folder)["rows"]["train"],
        "seed": config.seed,
    }


def metrics(folder):
    """What the record says of a row's metrics; a run that diverged before its first checkpoint began at its best."""
    found = record(folder)
    best = found["best"]["metrics"] if found["best"] else found["initial"]
    return {
        "hp/val_loss": found["metrics"]["val/loss"],
        "hp/best_val_loss": best["val/loss"],
        "hp/train_loss": found["metrics"]["train/loss"],
        "hp/excess_loss": found["excess_loss"],
    }


@pytest.fixture(scope="module")
def with_a_killed_one(swept, tmp_path_factory):
    """The sweep, and a job without an end: it still runs, or was killed."""
    folder = tmp_path_factory.mktemp("killed") / "sweep"
    shutil.copytree(swept, folder, ignore=shutil.ignore_patterns("checkpoints"))
    shutil.copytree(folder / jobs(folder)[-1], folder / KILLED, ignore=shutil.ignore_patterns("*.end"))
    hparams.write_start(folder / KILLED, cells(folder / KILLED))  # a copy would share the row of the other
    return folder


@pytest.mark.parametrize("loader", ["true", "false"])
def test_hparams_have_a_row_a_job_that_agrees_with_its_record(with_a_killed_one, swept, loader):
    folder = with_a_killed_one
    with served(folder, f"--load_fast={loader}") as address:

        def rows():
            tags = ask(address, "plugin/timeseries/tags")
            read_so_far = {*tags["scalars"]["runTagInfo"], *tags["images"]["tagRunSampledInfo"].get("sweep/lr", ())}
            found = ask(address, "plugin/hparams/session_groups", EVERY_ROW)["sessionGroups"]
            return read_so_far == {*jobs(folder), "_sweep", "_least_squares"} and found

        groups = {group["sessions"][0]["name"]: group for group in stable(rows)}
        experiment = ask(address, "plugin/hparams/experiment", {})
        tags = ask(address, "plugin/timeseries/tags")["scalars"]["runTagInfo"]
    assert sorted(groups) == jobs(folder)
    assert len(groups) == 7
    for name, group in groups.items():
        written_in = folder if name == KILLED else swept
        assert group["name"].startswith(hparams.trial(written_in / name))
    for name, group in groups.items():
        wanted = hyperparameters(folder / name)
        assert {key: group["hparams"][key] for key in wanted} == wanted
        values = {metric["name"]["tag"]: metric["value"] for metric in group["metricValues"]}
        wanted = metrics(folder / name)
        assert {tag: values[tag] for tag in wanted} == pytest.approx(wanted, rel=1e-6)
        (session,) = group["sessions"]
        ended = {"completed": "STATUS_SUCCESS", "diverged": "STATUS_FAILURE"}[record(folder / name)["status"]]
        assert session["status"] == ("STATUS_UNKNOWN" if name == KILLED else ended)
    infos = experiment["hparamInfos"]
    assert [(info["name"], info["differs"]) for info in infos[:3]] == [
        ("lr", True), ("momentum", True), ("optimizer", True)
    ]  # fmt: skip
    assert not any(info["differs"] for info in infos[3:])
    assert {"optimizer.nesterov", "optimizer.betas"} <= {info["name"] for info in infos}  # of SGD, and of Adam
    names = ("best_val_loss", "excess_loss", "steps_above_1_percent", "train_loss", "val_loss")
    assert [info["name"]["tag"] for info in experiment["metricInfos"][:5]] == [f"hp/{name}" for name in names]
    for name in (*jobs(folder), "_least_squares"):
        assert {"val/loss", "train/loss", "param/weight"} <= set(tags[name])


@pytest.fixture(scope="module")
def window(swept):
    """A browser, and the address of the sweep's dashboard."""
    if lacking := missing():
        reason = f"no {' and no '.join(lacking)} here"
        pytest.fail(reason) if os.environ.get("LINEAR_LAB_BROWSER") == "required" else pytest.skip(reason)
    with served(swept) as address, chromium(*SIZE) as driver:
        yield driver, address


@pytest.fixture
def page(window):
    """The same; a test fails if the console complains of what it visits."""
    yield window
    assert complaints(window[0]) == []


def test_the_table_ranks_the_runs(page, swept):
    driver, address = page
    visit(driver, address, "hparams")

    def shown():
        """Trial IDs without the time, which makes them unique."""
        return [row["Trial ID"].rsplit(" ", 2)[0] for row in trials(driver)]

    assert shown() == sorted(trial_ids(jobs(swept), swept))
    assert len({name[:13] for name in shown()}) == 6  # so many characters are seen
    sort(driver, "hp/val_loss", "Ascending")
    ranked = sorted(jobs(swept), key=lambda name: record(swept / name)["metrics"]["val/loss"])
    names = trial_ids(ranked, swept)
    rows = stable(lambda: shown()[0] == names[0] and trials(driver), times=1)
    assert shown() == names
    assert list(rows[0])[2:5] == ["lr", "momentum", "optimizer"]
    for row, name in zip(rows, ranked, strict=True):
        wanted = {**hyperparameters(swept / name), **metrics(swept / name)}
        shown = {
            key: float(row[key]) if isinstance(wanted[key], (int, float)) else row[key] for key in row if key in wanted
        }
        assert shown.keys() >= {"lr", "momentum", "optimizer", *metrics(swept / name)}
        for key, value in shown.items():  # five digits are shown
            assert value == (pytest.approx(wanted[key], rel=1e-4) if isinstance(value, float) else wanted[key])

    view(driver, "parallel-coords")
    assert count(driver, "g.foreground path") == 6
    assert not [line for line in read(driver, "g.foreground path", "outerHTML") if "NaN" in line]

    view(driver, "scatter-plot-matrix")
    hparams_and_metrics, shown_metrics = 10, 5
    assert count(driver, "circle.data-marker") == 6 * hparams_and_metrics * shown_metrics
    assert not [point for point in read(driver, "circle.data-marker", "outerHTML") if "NaN" in point]


def test_pinned_cards_have_a_curve_a_run_in_its_optimizers_colour(page):
    driver, address = page
    driver.set_window_size(1500, 700)  # spares it the other cards
    visit(driver, address)
    cards = pinned(driver)
    driver.set_window_size(*SIZE)
    assert list(cards) == ["val/loss", "train/log10_excess"]
    assert sorted(Counter(cards["val/loss"]).values()) == [1, 3, 3]  # least squares, SGD, Adam
    assert sorted(Counter(cards["train/log10_excess"]).values()) == [3, 3]  # no logarithm of zero


@pytest.mark.parametrize("tags", [["pictures/fit", "sweep/lr", "sweep/paths"], ["pictures/loss_surface"]])
def test_image_cards_are_loaded(page, swept, tags):
    driver, address = page
    visit(driver, f"{address}&tagFilter={'|'.join(tags)}")
    wanted = {(tag, run) for tag in tags for run in (["_sweep"] if tag.startswith("sweep") else jobs(swept))}

    def loaded():
        widths = read(driver, "image-card img", "naturalWidth")
        return len(widths) == len(wanted) and all(widths) and widths

    assert min(stable(loaded)) > 300
    names, runs = (read(driver, f"image-card .{part}") for part in ("tag", "run"))
    assert {(tag.strip(), run.strip()) for tag, run in zip(names, runs, strict=True)} == wanted


def test_histograms_are_there_for_each_step_with_pictures(page):
    driver, address = page
    visit(driver, address, "histograms")
    steps = 5 * len([0, 1, 3, 10, 30, 60]) + len([0, 1, 3, 8])
    assert count(driver, "g.histogram") == 2 * steps  # of residuals, and of gradient norms


def test_the_graph_goes_from_x_and_y_to_the_loss(page):
    driver, address = page
    visit(driver, address, "graphs")
    assert count(driver, "g.node") == 5
    assert {node.get("name") for node in read(driver, "g.node", "dataset")} == {"x", "y", "network", "loss", "output"}


def test_texts_show_leaderboard_config_and_outcome(page, swept):
    driver, address = page
    visit(driver, address, "text&tagFilter=outcome|leaderboard")
    count(driver, "tf-text-loader")
    cells = stable(lambda: read(driver, "td"))
    ranked = sorted(jobs(swept), key=lambda name: record(swept / name)["metrics"]["val/loss"])
    shown = [cell for cell in cells if cell in ranked]
    assert shown[:6] == ranked
    assert Counter(read(driver, "strong")) == Counter(
        record(swept / name)["error"] or record(swept / name)["status"] for name in ranked
    )
    configs = [OmegaConf.create(text) for text in read(driver, "code") if "optimizer:" in text]
    saved = [OmegaConf.load(swept / name / ".hydra" / "config.yaml") for name in ranked]
    optimizers = [
        sorted((config.optimizer._target_, config.optimizer.lr) for config in some) for some in (configs, saved)
    ]
    assert optimizers[0] == optimizers[1]


def test_custom_scalars_lay_curves_over_each_other(page):
    driver, address = page
    visit(driver, address, "custom_scalars")
    count(driver, "tf-custom-scalar-multi-line-chart-card")
    wanted = [20, 6, 13, 13]  # of six runs and least squares: train, val, optimum; excess; weight and bias, and optimum
    titles = "#matches-list-title"
    matches = stable(lambda: [" ".join(text.split()) for text in read(driver, titles)])
    assert matches == [f"Matches ({number})" for number in wanted]
