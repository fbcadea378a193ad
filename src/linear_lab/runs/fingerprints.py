"""Fingerprints of configs, by which a run is found again.

The fingerprint of a config is the sum, modulo 2^64, of a hash of each of its leaves. So it does not depend on the order
of keys, and of a million configs that differ in a few values it is computed as columns: each value adds its own terms.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Path = tuple[str, ...]  # the keys that lead to a leaf; positions in a list count as keys

# top-level keys of a config that decide no number
FREE = ("output_root", "resume", "trust", "console", "logger", "name", "tags", "overwrite", "fail_fast")
SAME_DATA = ("batch_size", "order_seed")  # keys of data that change no row


def leaves(node: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Yield the path and the value of each leaf of a tree; an empty dict or list is a leaf.

    >>> list(leaves({"a": {"b": [1, 2]}, "c": {}}))
    [(('a', 'b', '0'), 1), (('a', 'b', '1'), 2), (('c',), {})]
    """
    if not isinstance(node, dict | list) or not node:
        yield path, node
        return
    for key, item in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(item, (*path, str(key)))


def term(path: Path, value: Any) -> int:
    """Hash of one leaf: 64 bits of SHA-256 of its path and its value, as JSON."""
    text = json.dumps([path, value])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def total(items: Iterable[tuple[Path, Any]], counts: Callable[[Path, Any], bool]) -> int:
    """Sum of the terms of those leaves that count."""
    return sum(term(path, value) for path, value in items if counts(path, value)) % 2**64


def config_hash(config: dict[str, Any]) -> str:
    """Fingerprint of what decides a run's numbers: not of where it lies and what it shows; 16 characters."""
    return f"{total(leaves(config), decides):016x}"


def problem_hash(config: dict[str, Any]) -> str:
    """Fingerprint of what must agree for two losses to be the same function of the parameters."""
    return f"{total(leaves(config), poses):016x}"


def decides(path: Path, value: Any) -> bool:
    """Tell whether a leaf decides a run's numbers."""
    return path[0] not in FREE and (path, value) != (("ckpt_path",), None)  # which older configs do not have


def poses(path: Path, value: Any) -> bool:
    """Tell whether a leaf is part of the problem that is solved: the data, the loss, and the form of the model."""
    if path[0] == "data":
        return path[1:2] != () and path[1] not in SAME_DATA
    return path[0] == "loss" or path == ("model", "_target_") or (path == ("model", "bias") and value is False)
