"""Experiments with linear models under gradient descent."""

__version__ = "0.1.0"


class UserError(Exception):
    """Something that the user can mend: its message says what is wrong, where, and what to do."""
