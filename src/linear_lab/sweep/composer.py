"""Composes the configs of jobs: Hydra composes once per choice of groups, and values are set in copies."""

import copy
import functools
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import OverrideType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from linear_lab.config import PATHS, absolute, make_paths_absolute
from linear_lab.runs import fingerprints
from linear_lab.runs.fingerprints import leaves

NUMBER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
MARK = "\0{}\0"  # replaces the value of a key; where it appears in the resolved config, that value goes
MARKS = re.compile("\0(\\d+)\0")
# matches a call of an OmegaConf resolver, except of oc.select, which returns the value of another key unchanged
RESOLVER = re.compile(r"\$\{(?!oc\.select:[\w.]+,\w+\})[^{}]*:")
Load = Callable[[list[str]], DictConfig]
Options = Callable[[str], list[str]]


class Patch(NamedTuple):
    """A parsed override."""

    line: str  # as typed
    key: str
    value: Any
    structural: bool = False  # whether it changes the config's keys: it chooses a group, or adds or removes a key
    plain: bool = True  # whether its value simply replaces the one in the config; see `is_plain`


class Patcher:
    """Composes with Hydra once per choice of groups, and sets single values in copies; the result is Hydra's.

    ``load`` composes a config from overrides. ``options`` lists the options of a group, and none for any other key.
    """

    def __init__(self, load: Load, options: Options) -> None:
        self.load, self.options = load, functools.cache(options)  # Hydra reads the disk
        self.loaded: dict[tuple[str, ...], DictConfig] = {}
        self.parser = OverridesParser.create()
        self.parse_by_grammar = functools.cache(self._parse_by_grammar)  # the jobs of a grid repeat their overrides

    def parse(self, line: str) -> Patch:
        number = NUMBER.fullmatch(line)
        if number and not self.is_structural(number[1]):  # Hydra's parser takes 0.5 ms per override
            kind = float if number[2] or number[3] else int
            return Patch(line, number[1], kind(line.partition("=")[2]))
        return self.parse_by_grammar(line)

    def _parse_by_grammar(self, line: str) -> Patch:
        (override,) = self.parser.parse_overrides([line])
        key, value = override.key_or_group, override.value()
        structural = override.type is not OverrideType.CHANGE or self.is_structural(key)
        return Patch(str(override.input_line), key, value, structural, is_plain(value))

    def is_structural(self, key: str) -> bool:
        """Return whether a key is a group, or a setting of Hydra's."""
        if "." in key:
            return key.startswith("hydra.") and key != "hydra.sweep.subdir"
        return bool(self.options(key))  # takes Hydra 20 ms per key

    def config(self, patches: Sequence[Patch]) -> DictConfig:
        """Compose. OmegaConf raises for a key that the config lacks, and Hydra for an override that it refuses."""
        shape = tuple(patch.line for patch in patches if patch.structural)
        if shape not in self.loaded:
            self.loaded[shape] = self.load(list(shape))
        cfg = copy.deepcopy(self.loaded[shape])
        for patch in patches:
            if not patch.structural:
                OmegaConf.update(cfg, patch.key, patch.value, merge=True)
        return cfg


class Places(NamedTuple):
    """The leaves of a resolved config to which the values of some keys go."""

    of_key: dict[str, list[fingerprints.Path]]  # by key, the leaves with its value: its own, and references to it
    fixed: list[tuple[fingerprints.Path, Any]]  # all other leaves, with their values


class Composer:
    """Composes the configs of a sweep's jobs.

    ``load`` and ``options`` are those of `Patcher`. ``default`` returns the option of a group for which none is typed.
    Relative paths are relative to ``folder``.
    """

    def __init__(self, load: Load, options: Options, default: Callable[[str], str], folder: str | Path) -> None:
        self.patcher = Patcher(lambda overrides: without_hydra(load(overrides)), options)
        self.options, self.default, self.folder = self.patcher.options, default, folder
        self.steering: Sequence[str] = ()  # overrides of the sweep, which are added to those of each job

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose, and resolve references; raises the errors of `Patcher.config`."""
        config: Any = OmegaConf.to_container(self.config(overrides), resolve=True)
        return dict(config)

    def config(self, overrides: Sequence[str]) -> DictConfig:
        """Compose, without resolving references; raises the errors of `Patcher.config`."""
        cfg = self._composed(overrides)
        make_paths_absolute(cfg, self.folder)
        return cfg

    def _composed(self, overrides: Sequence[str]) -> DictConfig:
        return self.patcher.config([self.patcher.parse(line) for line in (*overrides, *self.steering)])

    def value(self, key: str, text: str) -> Any:
        patch = self.patcher.parse(f"{key}={text}")
        return absolute(patch.value, self.folder) if patch.key in PATHS else patch.value

    def is_column(self, key: str, text: str) -> bool:
        """Return whether an override sets a single value, which can be set in a config that is already composed."""
        patch = self.patcher.parse(f"{key}={text}")
        return patch.plain and not patch.structural

    def places(self, overrides: Sequence[str], keys: Sequence[str]) -> Places | set[str]:
        """Find the leaves to which the values of keys go, by composing with a mark in place of each value.

        Returns instead the keys whose values become part of another value, as in ``${seed}-${data.seed}``, or are
        arguments of a resolver, as in ``${oc.env:HOME,${seed}}``. Raises the errors of `Patcher.config`.
        """
        if overlapping := {one for one in keys for other in keys if one != other and one.startswith(f"{other}.")}:
            return overlapping
        cfg = self._composed(overrides)
        groups = {key for key in keys if isinstance(OmegaConf.select(cfg, key, throw_on_missing=False), DictConfig)}
        if groups:
            return groups  # a mark cannot represent the values that may replace a dict
        for number, key in enumerate(keys):
            OmegaConf.update(cfg, key, MARK.format(number), merge=True)
        if keys and any(RESOLVER.search(str(value)) for _, value in leaves(OmegaConf.to_container(cfg))):
            return set(keys)  # a resolver may return anything for a mark
        make_paths_absolute(cfg, self.folder, {*PATHS} - {*keys})
        try:
            resolved = [*leaves(OmegaConf.to_container(cfg, resolve=True))]
        except OmegaConfBaseException:  # for example, a reference to an element of a list
            if not keys:
                raise
            return set(keys)
        of_key: dict[str, list[fingerprints.Path]] = {key: [] for key in keys}
        inside: set[str] = set()
        for path, value in resolved:
            if isinstance(value, str) and "\0" in value:
                if mark := MARKS.fullmatch(value):
                    of_key[keys[int(mark[1])]].append(path)
                else:
                    inside |= {keys[int(number)] for number in MARKS.findall(value)}
        return inside or Places(of_key, [leaf for leaf in resolved if "\0" not in str(leaf[1])])

    def choices(self, overrides: Sequence[str]) -> list[str]:
        """Return the overrides that choose an option of a group."""
        return [item for item in overrides if self.options(item.partition("=")[0])]

    def option(self, overrides: Sequence[str], group: str) -> str:
        """Return the option of a group that a job's overrides choose, or the default one."""
        typed = [item.partition("=")[2] for item in overrides if item.partition("=")[0] == group]
        return typed[-1] if typed else self.default(group)


def composer_of(hydra_context: Any, config: Any) -> Composer:
    """Return a composer for the jobs of this command, made from what Hydra passes to its plugins."""
    loader, choices = hydra_context.config_loader, config.hydra.runtime.choices
    return Composer(
        lambda overrides: loader.load_configuration(config.hydra.job.config_name, overrides, run_mode=RunMode.RUN),
        loader.get_group_options,
        lambda group: str(choices.get(group)),
        config.hydra.runtime.cwd,
    )


def without_hydra(cfg: DictConfig) -> DictConfig:
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def is_plain(value: Any) -> bool:
    """Return whether OmegaConf stores a value unchanged: it has no reference, nothing missing, and no dict to merge."""
    if type(value) is list:
        return all(map(is_plain, value))
    if type(value) is str:
        return "${" not in value and value != "???"
    return value is None or type(value) in (bool, int, float)
