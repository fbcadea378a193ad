"""Making text from disk or from a library safe for the terminal, and short enough for a message."""

import re
from typing import Any

# C0 except tab and line feed, DEL, C1, zero-width and bidirectional characters, line separators, surrogates
CONTROLS = re.compile(r"[\0-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufeff]")


def printable(text: str) -> str:
    r"""Replace characters that control a terminal, or that UTF-8 cannot encode: the text may come from a stranger.

    >>> printable("a\x1b[2Jb, größe\n")
    'a?[2Jb, größe\n'
    """
    return CONTROLS.sub("?", text)


def joined(tags: Any) -> str:
    """Join the tags of a config; a single tag need not be in a list.

    >>> joined(["a", "b"]), joined("a"), joined(None)
    ('a, b', 'a', '')
    """
    return printable(", ".join(map(str, tags)) if isinstance(tags, list) else str(tags or ""))


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its class if it has none, such as the EOFError of torch.load."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
