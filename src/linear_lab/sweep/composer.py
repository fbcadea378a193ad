"""The configs of many jobs: composed once for each choice of groups, single values put in."""

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

from linear_lab.run import config_hash
from linear_lab.sweep.templates import BLANK, ResolvedText, Text, Tree, leaves

NUMBER = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)=-?(?:0|[1-9]\d*)(\.\d+)?([eE][+-]?\d+)?", re.ASCII)
REFERENCE = re.compile(r"\$\{[\w.]+\}")  # to another value, as it stands
PATH = "data.path"


class Patch(NamedTuple):
    """An override, parsed.

    Attributes:
        line: as typed.
        key: whose value it sets.
        value: to what.
        structural: whether it changes the config's shape: chooses a group, adds a key, or takes one away.
        plain: whether the value takes the place of what was there as it stands.
    """

    line: str
    key: str
    value: Any
    structural: bool = False
    plain: bool = True


class Patcher:
    """Composes with Hydra once for each choice of groups, and puts single values into copies, as Hydra does.

    Args:
        load: composes a config from overrides.
        options: lists the options of a group; empty for what is none.
    """

    def __init__(self, load: Callable[[list[str]], DictConfig], options: Callable[[str], list[str]]) -> None:
        self.load, self.options = load, functools.cache(options)  # Hydra looks at the disk
        self.loaded: dict[tuple[str, ...], DictConfig] = {}
        self.parser = OverridesParser.create()
        self.parse = functools.cache(self.parse_anew)  # a grid repeats them

    def parse_anew(self, line: str) -> Patch:
        """Parse an override."""
        number = NUMBER.fullmatch(line)
        if number and not self.is_structural(number[1]):  # Hydra's grammar takes half a millisecond
            kind = float if number[2] or number[3] else int
            return Patch(line, number[1], kind(line.partition("=")[2]))
        (override,) = self.parser.parse_overrides([line])
        key, value = override.key_or_group, override.value()
        structural = override.type is not OverrideType.CHANGE or self.is_structural(key)
        return Patch(str(override.input_line), key, value, structural, is_plain(value))

    def is_structural(self, key: str) -> bool:
        """Tell a group, and a value that decides how Hydra composes, from any other value."""
        return bool(self.options(key)) or (key.startswith("hydra.") and key != "hydra.sweep.subdir")

    def split(self, overrides: Sequence[str]) -> tuple[tuple[str, ...], list[Patch]]:
        """Return what changes the shape, and the values to put in."""
        patches = [self.parse(line) for line in overrides]
        return tuple(p.line for p in patches if p.structural), [p for p in patches if not p.structural]

    def config(self, shape: tuple[str, ...], values: Sequence[tuple[str, Any]]) -> DictConfig:
        """Compose.

        Raises:
            OmegaConfBaseException: for a key that the chosen groups do not have.
            HydraException: for what Hydra refuses.
        """
        if shape not in self.loaded:
            self.loaded[shape] = self.load(list(shape))
        cfg = copy.deepcopy(self.loaded[shape])
        for key, value in values:
            OmegaConf.update(cfg, key, value, merge=True)
        return cfg


class Composer:
    """Composes the configs of a sweep's jobs; of those that set the same keys only the first one takes its time.

    Args:
        load: composes a config from overrides, as Hydra does.
        options: lists the options of a group; empty for what is none.
        default: names the option of a group where none is typed.
        folder: where relative paths start.

    Attributes:
        steering: overrides that each job has besides its own.
    """

    def __init__(
        self,
        load: Callable[[list[str]], DictConfig],
        options: Callable[[str], list[str]],
        default: Callable[[str], str],
        folder: str | Path,
    ) -> None:
        self.patcher = Patcher(lambda lines: without_hydra(load(lines)), options)
        self.options, self.default, self.folder = self.patcher.options, default, folder
        self.steering: Sequence[str] = ()
        self.templates: dict[Any, Tree | Text | None] = {}
        self.composed = functools.lru_cache(maxsize=1)(self.compose_anew)  # texts are made of the same one
        self.blank = functools.lru_cache(maxsize=1)(self.compose_blank)
        self.references: dict[Any, list[tuple[str, str]]] = {}
        self.hash = functools.cache(lambda overrides, steering: config_hash(self(overrides)))  # seeds share it

    def __call__(self, overrides: Sequence[str]) -> dict[str, Any]:
        """Compose, with references resolved. Other jobs share parts of what is returned: change nothing in it.

        Raises:
            OmegaConfBaseException: for a key that the chosen groups do not have.
            HydraException: for what Hydra refuses.
        """
        found: dict[str, Any] = self.compose(Tree, overrides)
        return found

    def config(self, overrides: Sequence[str]) -> DictConfig:
        """Compose a config that the caller may change, with references as they stand; raises as a call."""
        return self.compose_anew((*overrides, *self.steering))

    def compose_anew(self, overrides: tuple[str, ...]) -> DictConfig:
        """Compose, with Hydra what changes the shape."""
        shape, patches = self.patcher.split(overrides)
        cfg = self.patcher.config(shape, [(patch.key, patch.value) for patch in patches])
        absolute_paths(cfg, self.folder)
        return cfg

    def yaml(self, overrides: Sequence[str]) -> str:
        """Compose what a run keeps as ``.hydra/config.yaml``; raises as a call."""
        found: str = self.compose(Text, overrides)
        return found

    def resolved_yaml(self, overrides: Sequence[str]) -> str:
        """Compose what a run shows as its config: with references resolved; raises as a call."""
        found: str = self.compose(ResolvedText, overrides)
        return found

    def group(self, overrides: Sequence[str]) -> str:
        """Fingerprint of a config less its seed: jobs of one fingerprint differ by chance alone; raises as a call."""
        others = ["seed=0" if item.startswith("seed=") else item for item in overrides]  # whose values may follow it
        return self.hash(tuple(others if "seed=0" in others else [*others, "seed=0"]), tuple(self.steering))

    def referring(self, overrides: Sequence[str]) -> list[tuple[str, str]]:
        """Return the values that refer to others, or hold one that does: group and key; raises as a call."""
        shape, patches = self.patcher.split([*overrides, *self.steering])
        key = shape, tuple((patch.key, patch.plain or repr(patch.value)) for patch in patches)
        if key not in self.references:
            config: Any = OmegaConf.to_container(self.composed((*overrides, *self.steering)))
            found = dict.fromkeys(path[:2] for path, leaf in leaves(config) if len(path) > 1 and refers(leaf))
            self.references[key] = [*found]
        return self.references[key]

    def compose(self, kind: type[Tree | Text], overrides: Sequence[str]) -> Any:
        """Compose by a template, where there is one; the first job of its kind makes it, and has to agree with it."""
        shape, patches = self.patcher.split([*overrides, *self.steering])
        values = {patch.key: patch.value for patch in patches}
        plain = all(patch.plain for patch in patches)
        if PATH in values:
            values[PATH] = absolute(values[PATH], self.folder)
        # what a number may take the place of, a list may not
        key = kind, shape, tuple(values), tuple(type(value) is list for value in values.values())
        if plain and (template := self.templates.get(key)):
            return template.filled([*values.values()])
        whole = kind.whole(self.composed((*overrides, *self.steering)))
        if plain and key not in self.templates:
            self.templates[key] = None
            if template := self.template(kind, shape, tuple(values)):
                # as text: 1 is not true there, and nan is nan
                self.templates[key] = template if repr(template.filled([*values.values()])) == repr(whole) else None
        return whole

    def template(self, kind: type[Tree | Text], shape: tuple[str, ...], keys: tuple[str, ...]) -> Tree | Text | None:
        """Make a template with blanks as values; None where a value may become part of another one."""
        try:
            return None if (cfg := self.blank(shape, keys)) is None else kind(cfg)
        except (OmegaConfBaseException, ValueError):
            return None

    def compose_blank(self, shape: tuple[str, ...], keys: tuple[str, ...]) -> DictConfig | None:
        """Compose with blanks as values; None where a value may become part of another one."""
        if any(one != other and one.startswith(f"{other}.") for one in keys for other in keys):
            return None
        plain: Any = OmegaConf.to_container(self.patcher.config(shape, []))
        if any(isinstance(leaf, str) and "${" in leaf and not REFERENCE.fullmatch(leaf) for _, leaf in leaves(plain)):
            return None
        cfg = self.patcher.config(shape, [(key, BLANK.format(number)) for number, key in enumerate(keys)])
        if PATH not in keys:
            absolute_paths(cfg, self.folder)
        return cfg

    def choices(self, overrides: Sequence[str]) -> list[str]:
        """Return those overrides that choose an option of a group."""
        return [item for item in overrides if self.options(item.partition("=")[0])]

    def option(self, overrides: Sequence[str], group: str) -> str:
        """Name the option of a group that a job has chosen."""
        typed = [item.partition("=")[2] for item in overrides if item.partition("=")[0] == group]
        return typed[-1] if typed else self.default(group)


def composer_of(hydra_context: Any, config: Any) -> Composer:
    """Make the composer of a command's jobs.

    Args:
        hydra_context: as Hydra hands it to its plugins.
        config: of the command.
    """
    loader, choices = hydra_context.config_loader, config.hydra.runtime.choices
    return Composer(
        lambda overrides: loader.load_configuration(config.hydra.job.config_name, overrides, run_mode=RunMode.RUN),
        loader.get_group_options,
        lambda group: str(choices.get(group)),
        config.hydra.runtime.cwd,
    )


def absolute_paths(cfg: DictConfig, folder: str | Path) -> None:
    """Have a config find its file from any folder; a relative path starts where the command was typed."""
    if cfg.data.get("path"):
        cfg.data.path = absolute(cfg.data.path, folder)


def absolute(path: Any, folder: str | Path) -> Any:
    """Return a path, if it is one, as seen from any folder."""
    return str(Path(folder, Path(str(path)).expanduser()).absolute()) if path else path


def without_hydra(cfg: DictConfig) -> DictConfig:
    """Take Hydra's own node out of a config."""
    with open_dict(cfg):
        cfg.pop("hydra", None)
    return cfg


def is_plain(value: Any) -> bool:
    """Tell whether a value stays as it stands: no reference, and nothing that is merged."""
    if type(value) is list:
        return all(map(is_plain, value))
    return value is None or type(value) in (bool, int, float) or (type(value) is str and not is_special(value))


def refers(leaf: Any) -> bool:
    """Tell a value that has a reference to another one in it."""
    return type(leaf) is str and "${" in leaf


def is_special(text: str) -> bool:
    """Tell what OmegaConf takes for a reference, or for missing."""
    return "${" in text or text == "???"
