"""The Makefile refuses unknown variables, which make itself would accept."""

import os
import re
import subprocess
import tomllib

import pytest

from linear_lab.cli import CONF

MAKEFILE = CONF.parent / "Makefile"
TARGETS = re.findall(r"^([a-z]+):[^\n]*\n(?:\t[^\n]*\n)*?\t[^\n]*\$\(ARGS\)", MAKEFILE.read_text(), re.MULTILINE)


def make(*arguments):
    alone = {key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS", "ARGS"))}
    result = subprocess.run(
        ["make", "-n", *arguments], cwd=CONF.parent, env=alone, capture_output=True, text=True, timeout=60
    )
    return result.returncode, result.stdout, result.stderr


def test_the_targets_are_there():
    assert {"train", "sweep", "steps", "evaluate", "predict", "export", "leaderboard", "dashboard", "test"} <= {
        *TARGETS
    }


@pytest.mark.parametrize("target", TARGETS)
def test_what_is_meant_for_args_is_refused(target):
    code, out, err = make(target, "lr=0.01", "data.x=[a b]", "ARGS=seed=1")
    assert (code, out) == (2, "")
    assert f'pass overrides in ARGS: make {target} ARGS="seed=1 data.x=[a b] lr=0.01"' in err


def test_args_in_small_letters():
    assert 'make train ARGS="optimizer.lr=0.1 seed=1"' in make("train", "args=optimizer.lr=0.1 seed=1")[2]


@pytest.mark.parametrize("target", TARGETS)
def test_what_make_knows_is_passed_on(target):
    code, out, _ = make(target, "ARGS=optimizer.lr=0.1 'data.x=[a b]'", "LOGDIR=outputs", "PYTHON=python3")
    assert code == 0
    assert "optimizer.lr=0.1 'data.x=[a b]'" in out


def test_each_group_of_packages_has_a_lock_file():
    groups = tomllib.loads((MAKEFILE.parent / "pyproject.toml").read_text())["dependency-groups"]
    assert re.search(r"^GROUPS := (.*)", MAKEFILE.read_text(), re.MULTILINE)[1].split() == sorted(groups)
    for group in groups:
        lock = (MAKEFILE.parent / f"requirements-{group}.lock").read_text()
        assert all("==" in line for line in lock.splitlines()), group
        code, out, _ = make("-W", f"requirements-{group}.lock", f".venv/{group}.installed")
        assert (code, f"--requirement requirements-{group}.lock" in out) == (0, True)
