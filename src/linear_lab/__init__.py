"""Experiments with linear models under gradient descent."""

from pathlib import Path

__version__ = "0.1.0"
CONF = Path(__file__).resolve().parents[2] / "conf"


class UserError(Exception):
    """Something that the user can mend: its message says what is wrong, where, and what to do."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its class where it has none, as the EOFError of an empty file."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
