"""Take the pictures of the docs anew: train a small sweep, and photograph its dashboard in a browser."""

import io
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageOps
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

if TYPE_CHECKING:
    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent / "tests"))

from browser import chromium, count, find, missing, pinned, read, served, sort, stable, trials, view, visit  # noqa: E402

SWEEP = ("optimizer=sgd,adam,rmsprop", "optimizer.lr=0.001,0.01,0.1", "data=synthetic")
FLATS = (
    "data=table",
    f"data.path={DOCS.parent / 'examples/flats.csv'}",
    "data.y=[rent]",
    "data.categorical=[city]",
    "optimizer=adam",
)
TAGS = ("predictions", "coefficients")  # pictures of the run on FLATS
WIDTH = 1100  # of a picture, in pixels
LARGEST = 60_000  # bytes of a picture
MARGIN = 12
SETTINGS = {  # of TensorBoard, which keeps them in the browser: room for charts
    "timeSeriesSettingsPaneOpened": False,
    "stepSelectorEnabled": False,
    "sideBarWidthInPercent": 25,
}
UNTICKED = ("momentum", "batch_size", "data", "hp/train_loss", "hp/best_val_loss")  # columns that say little here
FIRST_RUNS = ("", "optimizer.lr=0.01", "optimizer.lr=0.125", "optimizer=adam")  # of start.md; the third one diverges
SEARCH = "sweep=search trainer.max_epochs=30 trainer.check_val_every_n_epoch=2 hydra.sweeper.trials=50"  # of search.md


def main() -> int:
    """Write the pictures, and return the exit code."""
    if lacking := missing():
        print(f"error: no {' and no '.join(lacking)} here, without which there are no pictures", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory() as root:
        # as in an active environment, so that the commands shown are short
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        take_first_runs(root, environment)
        take_search(root, environment)
        command = ["python", "-m", "linear_lab.train", "-m", "name=study1", *SWEEP]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=root)
        folder = Path(root, "outputs/sweeps/study1")
        with served(folder) as address, chromium(WIDTH, 1000) as driver:
            driver.get(address)
            driver.execute_script("localStorage.setItem('_tb_global_settings', arguments[0])", json.dumps(SETTINGS))
            for take in (timeseries, hparams, pictures, sweep):
                save(take(driver, address), DOCS / f"{take.__name__}.png")
        command = ["python", "-m", "linear_lab.train", "name=map", "sweep=map", "hydra.launcher.keep=0"]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=root)
        save(drawn(Path(root, "outputs/sweeps/map/_sweep"), "sweep/map"), DOCS / "map.png")
        command = ["python", "-m", "linear_lab.train", "hydra.run.dir=flats", *FLATS]
        subprocess.run(command, check=True, capture_output=True, env=environment, cwd=root)
        save(side_by_side(stripes()), DOCS / "stripes.png")
        save(side_by_side([drawn(Path(root, "flats"), f"pictures/{tag}") for tag in TAGS]), DOCS / "flats.png")
    return 0


def take_first_runs(root: str, environment: dict[str, str]) -> None:
    """Photograph the losses of the runs that start.md trains."""
    for override in FIRST_RUNS:
        command = ["python", "-m", "linear_lab.train", *override.split()]
        subprocess.run(command, check=False, capture_output=True, env=environment, cwd=root)
    with served(Path(root, "outputs/runs")) as address, chromium(WIDTH, 1000) as driver:
        driver.get(address)
        driver.execute_script("localStorage.setItem('_tb_global_settings', arguments[0])", json.dumps(SETTINGS))
        page = timeseries(driver, address)
        lowest = edges(driver, find(driver, "runs-data-table mat-checkbox")[-1])[3]
        pins = edges(driver, find(driver, "metrics-pinned-view")[0])
        save(page.crop((0, pins[1] - 56, WIDTH, max(lowest, pins[3]))), DOCS / "start.png")


def take_search(root: str, environment: dict[str, str]) -> None:
    """Take the picture that the search of search.md draws on its own page."""
    command = ["python", "-m", "linear_lab.train", "-m", "name=study2", *SEARCH.split()]
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=root)
    save(drawn(Path(root, "outputs/sweeps/study2/_sweep"), "sweep/lr"), DOCS / "search.png")


def drawn(folder: Path, tag: str) -> Image.Image:
    """The picture of a tag that a run has logged last."""
    image = EventAccumulator(str(folder)).Reload().Images(tag)[-1]
    return Image.open(io.BytesIO(image.encoded_image_string)).convert("RGB")


def stripes() -> list[Image.Image]:
    """Draw a picture of each class of examples/own_project, without and with noise."""
    sys.path.insert(0, str(DOCS.parent / "examples/own_project"))
    from own_project.data import Stripes

    images = []
    clean, noisy = Stripes(noise=0), Stripes()
    for data in (clean, noisy):
        data.setup("fit")
    classes = [int(y) for _, y in clean.train]
    for k in (classes.index(c) for c in range(3)):
        for values in (clean.train[k][0][0], noisy.train[k][0][0]):
            grey = ((values + 3) / 6 * 255).clamp(0, 255).byte().numpy()
            image = Image.fromarray(grey).resize((120, 120), Image.Resampling.NEAREST)
            images.append(ImageOps.expand(image.convert("RGB"), 6, "white"))
    return images


def side_by_side(images: list[Image.Image]) -> Image.Image:
    """Join pictures from left to right."""
    joint = Image.new("RGB", (sum(image.width for image in images), max(image.height for image in images)), "white")
    for k, image in enumerate(images):
        joint.paste(image, (sum(before.width for before in images[:k]), 0))
    return joint


def timeseries(driver: "Chrome", address: str) -> Image.Image:
    """The pinned losses of all runs, with val/loss on a logarithmic scale, and below them what else there is."""
    window(driver, 1100)
    visit(driver, address)
    pinned(driver)
    for button in find(driver, "metrics-card-groups-component > div:has(card-view) metrics-card-group-toolbar button"):
        click(driver, button)
    click(driver, find(driver, "metrics-pinned-view [aria-label='More line chart options']")[0])
    click(driver, stable(lambda: find(driver, ".mat-mdc-menu-panel button"), times=1)[0])
    page, (*_, last) = shot(driver), edges(driver, find(driver, "runs-data-table mat-checkbox")[-1])
    groups = [edges(driver, group)[3] for group in find(driver, "metrics-card-group-toolbar")]
    return page.crop((0, 0, WIDTH, min(bottom for bottom in groups if bottom > last)))  # no group is cut


def hparams(driver: "Chrome", address: str) -> Image.Image:
    """The table, the best run first, and below it the same runs as lines, on logarithmic scales."""
    window(driver, 1400)
    visit(driver, address, "hparams")
    trials(driver)
    for box in find(driver, "paper-checkbox"):
        if box.get_property("textContent").strip() in UNTICKED:
            click(driver, box)
    sort(driver, "hp/val_loss", "Ascending")
    page = shot(driver)
    rows = [edges(driver, row) for row in find(driver, "tr") if row.is_displayed()]
    view(driver, "parallel-coords")
    count(driver, "g.foreground path")
    for button in find(driver, "paper-radio-button"):
        if button.get_property("textContent").strip() == "Logarithmic":
            click(driver, button)
    (pane,), (plot,) = (find(driver, f"tf-hparams-{name}") for name in ("sessions-pane", "parallel-coords-plot"))
    left, top, right, _ = edges(driver, pane)
    lines = shot(driver).crop((left, top, right, edges(driver, plot)[3]))
    end = max(row[3] for row in rows) + MARGIN
    page.paste("white", (0, end, left, page.height))  # the rest of the list of hyperparameters
    return joined(page, lines, left, end)


def pictures(driver: "Chrome", address: str) -> Image.Image:
    """Fit and loss surface of two runs at their last step."""
    page, (_, bottom) = cards(driver, f"{address}&tagFilter=pictures&runFilter=^sgd-lr=0.001|^adam-lr=0.1", 4)
    return page.crop((0, 0, WIDTH, bottom))


def sweep(driver: "Chrome", address: str) -> Image.Image:
    """What a sweep says of itself: rates, paths, and the leaderboard from the Text page."""
    page, (left, bottom) = cards(driver, f"{address}&tagFilter=sweep&runFilter=_sweep", 2)
    window(driver, 1420)
    visit(driver, address, "text&tagFilter=leaderboard")
    count(driver, "td")
    *corner, right, lower = edges(driver, find(driver, "table")[0])
    board = shot(driver).crop((*corner, right, lower - 6))  # less the edge in a run's colour
    return joined(page, board, left, bottom)


def cards(driver: "Chrome", address: str, number: int) -> tuple[Image.Image, tuple[int, int]]:
    """A page of so many image cards, and where the first of them begins from the left, and the last one ends."""
    window(driver, 980)
    visit(driver, address)
    widths = stable(lambda: all(found := read(driver, "image-card img", "naturalWidth")) and found)
    assert len(widths) == number
    found = [edges(driver, card) for card in find(driver, "image-card")]
    return shot(driver), (found[0][0], found[-1][3] + MARGIN)


def window(driver: "Chrome", width: int) -> None:
    """Lay pages out for a width, and show them as wide as all pictures are."""
    metrics = {"width": width, "height": 1400, "deviceScaleFactor": WIDTH / width, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def click(driver: "Chrome", element: "WebElement") -> None:
    """Click without a mouse, which would show hints."""
    driver.execute_script("arguments[0].click()", element)


def edges(driver: "Chrome", element: "WebElement") -> list[int]:
    """Left, upper, right and lower edge of an element, in pixels of the picture."""
    script = """
        const box = arguments[0].getBoundingClientRect();
        return [box.left, box.top, box.right, box.bottom].map(edge => Math.round(edge * devicePixelRatio));
    """
    return driver.execute_script(script, element)


def shot(driver: "Chrome") -> Image.Image:
    """What the window shows."""
    driver.execute_script("document.activeElement.blur()")
    time.sleep(1.5)  # menus fade, and curves glide
    return Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")


def joined(page: Image.Image, part: Image.Image, left: int, top: int) -> Image.Image:
    """A page whose lower end is covered by a part of another one."""
    page.paste(part, (left, top))
    return page.crop((0, 0, WIDTH, top + part.height + MARGIN))


def save(picture: Image.Image, path: Path) -> None:
    """Write a picture with as few colours as LARGEST asks for, and print its size."""
    for colours in (200, 100, 64):
        picture.quantize(colours, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
        if path.stat().st_size <= LARGEST:
            break
    print(f"{path.relative_to(DOCS.parent)}: {picture.width} x {picture.height}, {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    raise SystemExit(main())
