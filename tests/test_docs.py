"""README and docs/: their commands print what the pages say, and their links lead somewhere."""

import itertools
import re
from pathlib import Path

import pytest
from examples import CHECKOUT, PAGES, Page, alike, blocks, clone, commands, rewritten, same
from markdown_it import MarkdownIt

LINKED = [*PAGES, *(CHECKOUT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"))]


def name(page):
    return str(page.relative_to(CHECKOUT))


@pytest.mark.docs
@pytest.mark.parametrize("page", PAGES, ids=name)
def test_a_page_shows_what_its_commands_print(page, tmp_path):
    clone(tmp_path / "clone")
    differences = Page(page, tmp_path / "clone").run()
    assert not differences, "\n".join(str(difference) for difference in differences)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    tokens = MarkdownIt().parse(page.read_text())
    headings = [after.content for token, after in itertools.pairwise(tokens) if token.type == "heading_open"]
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", LINKED, ids=name)
def test_links_of_a_page_resolve(page):
    inline = [child for token in MarkdownIt().parse(page.read_text()) for child in token.children or ()]
    targets = [
        child.attrGet("href") or child.attrGet("src") for child in inline if child.type in ("link_open", "image")
    ]
    for target in targets:
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        assert not anchor or anchor in anchors(found), target


def test_blocks_and_commands_of_a_page():
    run = "```console\n$ echo a \\\n  b\na b\n$ true\n```\n"
    text = f"# Title\n\n{run}\n<!-- shown: wants a GPU -->\n```console\n$ no\n```\n"
    first, second = blocks(text)
    assert list(commands(first)) == [(5, "echo a \\\n  b", ["a b"]), (7, "true", [])]
    assert (first.shown, second.shown) == (False, True)


@pytest.mark.parametrize(
    ("expected", "printed", "equal"),
    [
        ("loss 0.123456", "loss   0.12346", True),
        ("loss 0.123456", "loss 0.1239", False),
        ("loss 1e-12", "loss 3.5e-15", True),
        ("loss 1e-8", "loss 2e-8", False),
        ("loss 0.1", "losses 0.1", False),
        ("runs/20261126-221654-cpct-sgd", "runs/20270101-000000-aaaa-sgd", True),
        ("runs/20261126-221654-cpct-sgd", "runs/20270101-000000-aaaa-adam", False),
        ("... done", "all of it is done", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("a\n...\nd", "a\nd", True),
        ("a\n...", "b\nc", False),
        ("a", "a\nb", False),
        ("rank seconds\n1 0.5\n...\n1 job", "rank seconds\n1 9.5\n2 8\n\n1 job", True),
        ("[exit code 1]", "[exit code 2]", False),
    ],
)
def test_what_is_the_same(expected, printed, equal):
    assert same(expected.splitlines(), printed.splitlines()) == equal


def test_a_line_of_several_numbers():
    assert alike("y = 2 x + 1e-12", "y = 2 x + 4e-11")
    assert not alike("y = 2 x + 1", "y = 2.1 x + 1")


def test_a_page_that_leaves_out_lines_goes_on_leaving_them_out():
    assert rewritten(["start 1", "...", "loss 2"], ["start 1", "more", "loss 3", "end"]) == ["start 1", "...", "loss 3"]
    assert rewritten(["start 1"], ["start 2", "end"]) == ["start 2", "end"]


def test_a_page_runs_in_its_folder(tmp_path):
    (tmp_path / "page.md").write_text(
        "```yaml\n# conf/a.yaml\nb: 1\n```\n"
        "```console\n$ cat conf/a.yaml\nb: 1\n$ false\n[exit code 1]\n$ echo 2\n3\n$ false\n$ false\n...\n```\n"
        "```python\nx = 1\nprint(x + 1)\n```\n```text\n2\n```\n```python\nx / 0\n```\n"
    )
    differences = Page(tmp_path / "page.md", tmp_path).run()
    assert [(difference.command, difference.printed[-1]) for difference in differences] == [
        ("echo 2", "2"),
        ("false", "[exit code 1]"),
        ("false", "[exit code 1]"),
        ("python", "ZeroDivisionError: division by zero"),
    ]


def test_pages_are_where_they_are_looked_for():
    assert Path(CHECKOUT, "README.md") in PAGES
