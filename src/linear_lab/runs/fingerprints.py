"""Fingerprints of configs, which identify the jobs of a sweep.

The fingerprint of a config is the sum, modulo 2^64, of a hash of each of its leaves. It does not depend on the order of
the keys. For a million configs that differ in a few values, it is computed as columns: each value adds its own hashes.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from typing import Any

Path = tuple[str, ...]  # the keys that lead to a leaf; positions in a list count as keys

# top-level keys of a config that change none of a run's numbers
NOT_HASHED = ("output_root", "resume", "trust", "console", "logger", "name", "tags", "overwrite", "fail_fast")
SAME_DATA = ("batch_size", "order_seed")  # keys of the group `data` that change no row


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


def leaf_hash(path: Path, value: Any) -> int:
    """Hash one leaf: the first 64 bits of SHA-256 of its path and value, written as JSON."""
    text = json.dumps([path, value])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def hash_sum(items: Iterable[tuple[Path, Any]], counts: Callable[[Path, Any], bool]) -> int:
    """Sum the hashes, modulo 2^64, of the leaves for which ``counts`` returns True."""
    return sum(leaf_hash(path, value) for path, value in items if counts(path, value)) % 2**64


def config_hash(config: dict[str, Any]) -> str:
    """Return the fingerprint, 16 hexadecimal digits, of all leaves that affect a run's numbers."""
    return f"{hash_sum(leaves(config), affects_numbers):016x}"


def problem_hash(config: dict[str, Any]) -> str:
    """Return the fingerprint of the leaves that must agree for two losses to be one function of the parameters."""
    return f"{hash_sum(leaves(config), defines_problem):016x}"


def affects_numbers(path: Path, value: Any) -> bool:
    """Return whether a leaf affects a run's numbers."""
    return path[0] not in NOT_HASHED and (path, value) != (("ckpt_path",), None)  # which older configs lack


def defines_problem(path: Path, value: Any) -> bool:
    """Return whether a leaf is part of the problem that is solved: the data, the loss, and the form of the model."""
    if path[0] == "data":
        return path[1:2] != () and path[1] not in SAME_DATA
    return path[0] == "loss" or path == ("model", "_target_") or (path == ("model", "bias") and value is False)
