"""Experiments with linear models under gradient descent."""

from pathlib import Path

__version__ = "0.1.0"
CONF = Path(__file__).resolve().parents[2] / "conf"


class UserError(Exception):
    """Something that the user can mend: its message says what is wrong, where, and what to do."""
