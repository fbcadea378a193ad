"""Text that comes from disk or from a library, made fit for one line of a message, and for a terminal."""

import re
from typing import Any

# C0 but tab and line feed, DEL, C1, no width, marks and overrides of direction, separators, and halves of pairs
CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    r"""Replace the characters that control a terminal, or that UTF-8 cannot write: a text may come from a stranger.

    >>> printable("a\x1b[2Jb, größe\n")
    'a?[2Jb, größe\n'
    """
    return CONTROLS.sub("?", text)


def joined(tags: Any) -> str:
    """Write the tags of a config as one text; a single one need not be in a list.

    >>> joined(["a", "b"]), joined("a"), joined(None)
    ('a, b', 'a', '')
    """
    return printable(", ".join(map(str, tags)) if isinstance(tags, list) else str(tags or ""))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message; its class where it has none, as the EOFError of an empty file."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
