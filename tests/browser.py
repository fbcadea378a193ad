"""The dashboard as a process, and a browser that looks at it; for tests and for the pictures of the docs.

TensorBoard builds its older pages of elements with shadow roots, which selectors do not enter: ``find`` does.

    time series       "scalar-card", "image-card", "histogram-card"; pinned ones below "metrics-pinned-view";
                      SERIES below a card: a curve a run
    scalars           "tf-scalar-card"
    custom scalars    "tf-custom-scalar-multi-line-chart-card"
    images            "img", loaded where naturalWidth > 0
    graphs            "g.node"
    histograms        "g.histogram": one a step and run
    distributions     "tf-distribution-loader"
    text              "tf-text-loader"; "td" for cells of its tables
    HPARAMS           "vaadin-grid", whose cells trials() reads; the plots after view():
                      "g.foreground path": a line a run; "circle.data-marker": a run in each cell of the matrix
"""

import contextlib
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request

SERIES = "line-chart path[style*=stroke]"
OWN = (  # what the console tells of healthy pages
    "Multiple instances of Three.js",  # TensorBoard's bundle holds it twice
    "is deprecated. Please use app-layout instead!",  # HPARAMS is built of old Polymer elements
    "Automatic fallback to software WebGL",  # there is no GPU; forceSVG=true spares most of them
    "GL Driver Message",
)
FIND = """
const inside = (root) => [
  ...root.querySelectorAll(arguments[0]),
  ...[...root.querySelectorAll('*')].filter(e => e.shadowRoot).flatMap(e => inside(e.shadowRoot)),
];
return inside(document);
"""


def start(logdir, *arguments, port=0):
    """Start the dashboard, by default on some free port; return the process and the address that it prints."""
    ports = [] if port is None else [f"--port={port}"]
    command = [sys.executable, "-m", "linear_lab.dashboard", str(logdir), "--no-browser", *ports, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.strip()
    raise RuntimeError(f"no address, but {end(process, None)}")


def end(process, by=signal.SIGINT):
    """End a process by a signal, and return its exit code and all that it said since it told its address."""
    if by:
        process.send_signal(by)
    try:
        said = "".join(process.communicate(timeout=30))
    finally:
        process.kill()
    return process.returncode, said.strip()


@contextlib.contextmanager
def served(logdir, *arguments):
    """Yield the address of a dashboard that ends cleanly."""
    process, address = start(logdir, *arguments)
    try:
        yield address
    finally:
        ended = end(process)
    assert ended == (0, "")


def ask(address, path, content=None):
    """What the dashboard tells its own pages; content goes there by POST."""
    body = None if content is None else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address.partition('?')[0]}data/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def missing():
    """Which programs a browser needs that are not here."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    return [name for name, path in (("chromium", browser), ("chromedriver", shutil.which("chromedriver"))) if not path]


@contextlib.contextmanager
def chromium(width=1500, height=1200):
    """Yield a browser without a window, in a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
        for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
            options.add_argument(f"--{argument}")
        options.add_argument(f"--user-data-dir={profile}")
        options.add_argument(f"--window-size={width},{height}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            yield driver
        finally:
            driver.quit()


def visit(driver, address, page="timeseries"):
    """Load a page anew: charts as SVG, which can be counted."""
    driver.get("about:blank")
    driver.get(f"{address}&forceSVG=true#{page}")


def find(driver, selector):
    """All elements that a selector matches, within shadow roots, too."""
    return driver.execute_script(FIND, selector)


def read(driver, selector, name="textContent"):
    """A property of all elements that a selector matches: by default the text, also of what is out of sight."""
    return driver.execute_script(
        FIND.replace("inside(document)", "inside(document).map(e => e[arguments[1]])"), selector, name
    )


def stable(question, seconds=30, times=3):
    """Ask until the answer is true and the same a few times in a row, and return it."""
    answers = []
    for _ in range(seconds * 4):
        answers.append(question())
        if answers[-1] and len(answers) >= times and all(answer == answers[-1] for answer in answers[-times:]):
            return answers[-1]
        time.sleep(0.25)
    raise TimeoutError(f"the last answers were {answers[-times:]}")


def count(driver, selector):
    """How many elements a selector matches once there are some, and no more come."""
    return stable(lambda: len(find(driver, selector)))


def pinned(driver):
    """The colours of the curves on each pinned card of the time series, once all have some: tag -> [colour, ...]."""
    script = """
        const cards = [...document.querySelectorAll('metrics-pinned-view scalar-card')];
        const colours = card => [...card.querySelectorAll(arguments[0])].map(path => path.style.stroke);
        return cards.map(card => [card.querySelector('.tag').textContent.trim(), colours(card)]);
    """

    def shown():
        cards = dict(driver.execute_script(script, SERIES))
        return all(cards.values()) and cards

    return stable(shown)


def view(driver, name):
    """Choose a view of HPARAMS: table, parallel-coords or scatter-plot-matrix."""
    stable(lambda: find(driver, f"paper-tab[view-id={name}-view]"), times=1)[0].click()


def trials(driver):
    """The table of HPARAMS, as far as it is in the window: a dict a row, in the order shown."""
    read = """
        const lines = [...arguments[0].shadowRoot.querySelectorAll('tr')].filter(line => line.offsetHeight);
        lines.sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top);
        const text = cell => cell.querySelector('slot').assignedNodes()[0].innerText.trim().replace(/\\s+/g, ' ');
        return lines.map(line => [...line.querySelectorAll('th, td:not([part~=details-cell])')].map(text));
    """

    def shown():
        rows = [row for grid in find(driver, "vaadin-grid") for row in driver.execute_script(read, grid)]
        return [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]

    return stable(shown)


def sort(driver, column, direction="Descending"):
    """Sort the table of HPARAMS: it does so once both a column and a direction are chosen."""
    for text in (column, direction):
        item = next(i for i in find(driver, "paper-item") if i.get_attribute("textContent").strip() == text)
        driver.execute_script("arguments[0].click()", item)


def complaints(driver):
    """What the console tells, but for what it tells of any healthy page."""
    levels = ("WARNING", "SEVERE")
    entries = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in levels]
    return [entry for entry in entries if not any(known in entry for known in OWN)]
