"""Experiments with linear models under gradient descent."""

from pathlib import Path

__version__ = "0.1.0"
PACKAGE = Path(__file__).resolve().parent
CHECKOUT = None if (PACKAGE / "conf").is_dir() else PACKAGE.parents[1]  # None: installed from a wheel, which has conf/
CONF = (CHECKOUT or PACKAGE) / "conf"


class UserError(Exception):
    """Something that the user can mend: its message says what is wrong, where, and what to do."""
