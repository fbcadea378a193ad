"""Configs with blanks: what is the same in many jobs is made once, and values are filled in."""

import functools
import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

BLANK, BLANKS = "value-{}-is-put-in-here", re.compile(r" ?value-(\d+)-is-put-in-here\n?")  # in YAML as it stands


class Tree:
    """A config as a tree with blanks; what is filled in shares with it all that holds none."""

    def __init__(self, cfg: DictConfig) -> None:
        self.tree = self.whole(cfg)
        places = [*blanks(self.tree)]
        numbers: dict[tuple[Any, ...], int] = {(): 0}  # of the containers to copy, parents first
        for path, _ in places:
            for length in range(1, len(path)):
                numbers.setdefault(path[:length], len(numbers))
        self.copied = [(numbers[path[:-1]], path[-1], at(self.tree, path)) for path in numbers if path]
        self.open = [(numbers[path[:-1]], path[-1], which) for path, which in places]

    @staticmethod
    def whole(cfg: DictConfig) -> dict[str, Any]:
        """The tree of a config without blanks."""
        plain: Any = OmegaConf.to_container(cfg, resolve=True)
        return dict(plain)

    def filled(self, values: Sequence[Any]) -> dict[str, Any]:
        """Fill in values."""
        made: list[Any] = [self.tree.copy()]
        for parent, key, part in self.copied:
            made[parent][key] = own = part.copy()
            made.append(own)
        for parent, key, which in self.open:
            made[parent][key] = values[which]
        whole: dict[str, Any] = made[0]
        return whole


class Text:
    """A config as YAML with blanks."""

    def __init__(self, cfg: DictConfig) -> None:
        tree: Any = self.tree(cfg)
        self.places = [*blanks(tree)]
        self.pieces = BLANKS.split(dump(tree))[::2]
        if any(type(key) is not str for path, _ in self.places for key in path):
            raise ValueError("in a list")
        self.written: dict[Any, str] = {}

    @staticmethod
    def whole(cfg: DictConfig) -> str:
        """The text of a config without blanks."""
        return OmegaConf.to_yaml(kept(cfg))

    @staticmethod
    def tree(cfg: DictConfig) -> Any:
        """What is written, as plain containers."""
        return OmegaConf.to_container(kept(cfg))

    def filled(self, values: Sequence[Any]) -> str:
        """Fill in values."""
        parts = [self.pieces[0]]
        for (path, which), piece in zip(self.places, self.pieces[1:], strict=True):
            parts += self.fragment(path, values[which]), piece
        return "".join(parts)

    def fragment(self, path: tuple[str, ...], value: Any) -> str:
        """Write what stands behind a key: how depends on how deep it lies."""
        if type(value) is int:
            return f" {value}\n"
        if type(value) is float:
            return f" {yaml.representer.SafeRepresenter().represent_float(value).value}\n"
        known = path, repr(value)
        if known not in self.written:
            blank, whole = ({path[-1]: item} for item in (BLANK.format(0), value))
            for key in reversed(path[:-1]):
                blank, whole = {key: blank}, {key: whole}
            self.written[known] = dump(whole)[len(BLANKS.split(dump(blank))[0]) :]
        return self.written[known]


class ResolvedText(Text):
    """The same, with references resolved."""

    @staticmethod
    def tree(cfg: DictConfig) -> Any:
        """What is written, as plain containers."""
        return OmegaConf.to_container(cfg, resolve=True)

    @staticmethod
    def whole(cfg: DictConfig) -> str:
        """The text of a config without blanks."""
        return OmegaConf.to_yaml(cfg, resolve=True)


def kept(cfg: DictConfig) -> DictConfig:
    """Return the config that a run keeps: its scheduler follows no value that changes when it is resumed."""
    merged: Any = OmegaConf.merge(cfg, {"scheduler": Tree.whole(cfg)["scheduler"], "resume": None})
    return merged  # type: ignore[no-any-return]


def leaves(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Yield paths and values of a tree, in its order."""
    if not isinstance(node, dict | list):
        yield path, node
        return
    for key, item in node.items() if isinstance(node, dict) else enumerate(node):
        yield from leaves(item, (*path, key))


def blanks(tree: Any) -> Iterator[tuple[tuple[Any, ...], int]]:
    """Yield the paths of the blanks in a tree, and their numbers."""
    for path, leaf in leaves(tree):
        if isinstance(leaf, str) and (found := BLANKS.fullmatch(leaf)):
            yield path, int(found[1])


def at(tree: Any, path: Sequence[Any]) -> Any:
    """Return what lies at a path."""
    return functools.reduce(lambda node, key: node[key], path, tree)


def dump(tree: Any) -> str:
    """Write YAML as OmegaConf does."""
    return OmegaConf.to_yaml(OmegaConf.create(tree))
