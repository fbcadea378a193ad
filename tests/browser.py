"""Starts the dashboard and a browser, for tests and for the pictures of the docs.

TensorBoard's older pages have elements with shadow roots, which selectors do not enter, but ``find`` does.

    time series       "scalar-card", "image-card", "histogram-card"; pinned ones below "metrics-pinned-view";
                      SERIES below a card: one curve per run
    scalars           "tf-scalar-card"
    custom scalars    "tf-custom-scalar-multi-line-chart-card"
    images            "img"; it is loaded if naturalWidth > 0
    graphs            "g.node"
    histograms        "g.histogram": one per step and run
    distributions     "tf-distribution-loader"
    text              "tf-text-loader"; "td" for cells of its tables
    HPARAMS           "vaadin-grid", whose cells trials() reads; the plots after view():
                      "g.foreground path": one line per run; "circle.data-marker": one per run and cell of the matrix
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
HARMLESS = (  # messages in the console that are no errors
    "Multiple instances of Three.js",  # TensorBoard's bundle contains it twice
    "is deprecated. Please use app-layout instead!",  # HPARAMS uses old Polymer elements
    "Automatic fallback to software WebGL",  # there is no GPU; forceSVG=true avoids most of these
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
    """Start the dashboard, by default on a free port; return the process and the address that it prints."""
    ports = [] if port is None else [f"--port={port}"]
    command = [sys.executable, "-m", "linear_lab.dashboard", str(logdir), "--no-browser", *ports, *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("http://"):
            return process, line.strip()
    raise RuntimeError(f"no address, but {end(process, None)}")


def end(process, by=signal.SIGINT):
    """End a process by a signal, and return its exit code and its output after the address."""
    if by:
        process.send_signal(by)
    try:
        said = "".join(process.communicate(timeout=30))
    finally:
        process.kill()
    return process.returncode, said.strip()


@contextlib.contextmanager
def served(logdir, *arguments):
    """Yield the address of a dashboard, and check that it ends cleanly."""
    process, address = start(logdir, *arguments)
    try:
        yield address
    finally:
        ended = end(process)
    assert ended == (0, "")


def ask(address, path, content=None):
    """Return the JSON that the dashboard sends to its pages; ``content`` is sent by POST."""
    body = None if content is None else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address.partition('?')[0]}data/{path}", body, headers)
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)


def missing():
    """Return the names of the programs that the browser needs and that are missing."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    return [name for name, path in (("chromium", browser), ("chromedriver", shutil.which("chromedriver"))) if not path]


@contextlib.contextmanager
def chromium(width=1500, height=1200):
    """Yield a headless browser with a new profile."""
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
    """Load a page, with charts as SVG, whose elements can be counted."""
    driver.get("about:blank")
    driver.get(f"{address}&forceSVG=true#{page}")


def find(driver, selector):
    """Return all elements that a selector matches, also within shadow roots."""
    return driver.execute_script(FIND, selector)


def read(driver, selector, name="textContent"):
    """Return a property of all elements that a selector matches, by default the text, even if it is not visible."""
    return driver.execute_script(
        FIND.replace("inside(document)", "inside(document).map(e => e[arguments[1]])"), selector, name
    )


def stable(question, seconds=30, times=3):
    """Call a function until its result is true and stays the same for a few calls, and return the result."""
    answers = []
    for _ in range(seconds * 4):
        answers.append(question())
        if answers[-1] and len(answers) >= times and all(answer == answers[-1] for answer in answers[-times:]):
            return answers[-1]
        time.sleep(0.25)
    raise TimeoutError(f"the last answers were {answers[-times:]}")


def count(driver, selector):
    """Return the number of elements that a selector matches, once there are some and their number stays the same."""
    return stable(lambda: len(find(driver, selector)))


def pinned(driver):
    """Return the colours of the curves on each pinned card, once all cards have some, as tag -> [colour, ...]."""
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
    """Return the visible part of the table of HPARAMS: one dict per row, in the order shown."""
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
    """Sort the table of HPARAMS, which needs both a column and a direction."""
    for text in (column, direction):
        item = next(i for i in find(driver, "paper-item") if i.get_attribute("textContent").strip() == text)
        driver.execute_script("arguments[0].click()", item)


def complaints(driver):
    """Return the messages in the browser's console, except those in `HARMLESS`."""
    levels = ("WARNING", "SEVERE")
    entries = [entry["message"] for entry in driver.get_log("browser") if entry["level"] in levels]
    return [entry for entry in entries if not any(known in entry for known in HARMLESS)]
