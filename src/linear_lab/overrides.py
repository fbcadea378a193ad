"""Checking the overrides of a command line: unknown options, and keys that nothing reads, are refused.

A key is read if conf/ has it, if a class in the config takes it as an argument, or if another value refers to it.
"""

import copy
import difflib
import functools
import importlib
import inspect
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from linear_lab import CONF, UserError
from linear_lab.runs.fingerprints import leaves
from linear_lab.terminal.layout import in_quotes

OPTIONAL = ("experiment", "sweep", "launch")  # groups of conf/ that a run does not need
LONGEST = 200  # characters that a message shows of an override that cannot be parsed
SEVERAL = ("experiment", "callbacks", "logger")  # groups of conf/ from which several options can be chosen
DEEP = re.compile(r"(?:[\[{(][^\[{(\]})]*){40}")  # brackets nested too deeply for Python's stack

# Arguments of classes that a run sets itself, whatever the config says.
GIVEN = {
    "trainer": ("callbacks", "logger", "default_root_dir"),
    "logger.tensorboard": ("save_dir", "purge_step"),
    "model": ("metric", "schema"),
}


def check(
    lines: list[str], config_name: str, renamed: Mapping[str, str], folder: str | None, *, trusted: bool, multirun: bool
) -> None:
    """Refuse overrides that change nothing or break each run; import classes only if the config is ``trusted``."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        typed = Typed(lines, config_name, folder)
        typed.check_options()
        try:
            typed.check_keys(renamed, trusted=trusted, multirun=multirun)
        except HydraException as error:  # caused by the chosen options
            raise UserError(" ".join(str(error).split())) from error


class Typed:
    """The overrides of a command line: choices of options, such as optimizer=adam, and single values."""

    def __init__(self, lines: Sequence[str], config_name: str, folder: str | None) -> None:
        self.config_name, self.loader = config_name, GlobalHydra.instance().config_loader()
        self.where = [f"hydra.searchpath=[{in_quotes(f'file://{Path(folder).absolute()}')}]"] if folder else []
        self.items = [*map(self.parse, lines)]
        self.choices = [item for item in self.items if self.options(item) and not isinstance(item.value(), dict)]
        self.values = [item for item in self.items if item not in self.choices]

    def parse(self, line: str) -> Override:
        with suppress(HydraException, ValueError):  # ValueError: a number has thousands of digits
            if not DEEP.search(line):
                item = OverridesParser.create(config_loader=self.loader).parse_override(line)
                if item.key_or_group:
                    return item
        if len(line) > LONGEST:
            raise UserError(f"{line[:LONGEST]}...: cannot be parsed; give a shorter value, with fewer brackets")
        raise UserError(
            f"{line}: cannot be parsed as key=value; type several values as in seed=2,4,null or seed=range(0,9), "
            "and special characters in quotes, as in \"metric='a (b)'\""
        )

    def options(self, item: Override) -> list[str]:
        """Return the options of the group from which an override chooses; an empty list for a single value."""
        group = item.key_or_group
        return [] if "." in group else list(self.loader.get_group_options(group, overrides=self.where))

    def compose(self, *others: str) -> DictConfig:
        """Compose the config of the chosen options, without single values."""
        chosen = [str(item.input_line) for item in self.choices if not item.is_sweep_override()]
        return self.loader.load_configuration(self.config_name, [*self.where, *chosen, *others], run_mode=RunMode.RUN)

    def check_options(self) -> None:
        """Refuse an option that a group does not have. The sweep itself checks swept options, except null."""
        for item in self.choices:
            group, value, options = item.key_or_group, item.value(), self.options(item)
            ours = (CONF / group).is_dir()
            if item.is_delete() and value is None and (group in OPTIONAL or not ours):
                continue
            if item.is_sweep_override():
                if not (item.is_discrete_sweep() and "null" in item.sweep_string_iterator()):
                    continue
                value = "null"
            several = value if isinstance(value, list) else [value]
            wrong = [one for one in several if one not in options]
            if wrong or not several or (len(several) > 1 and ours and group not in SEVERAL):
                near = nearest(str(wrong[0]), options) if wrong else None
                hint = f"; did you mean {group}={near}?" if near else ""
                raise UserError(f"{item.input_line}: choose one of {', '.join(options)}{hint}")

    def check_keys(self, renamed: Mapping[str, str], *, trusted: bool, multirun: bool) -> None:
        """Refuse keys that nothing reads, and single values for keys with several; `command.entry` has ``renamed``."""
        cfg = self.compose()
        node: Any = OmegaConf.to_container(cfg)  # not resolved: resolving hydra.sweep.dir would create the folder
        names = {*dotted(node)}
        several = next((item for item in self.items if item.is_sweep_override()), None)
        if several and not multirun and self.with_values(cfg).hydra.mode != RunMode.MULTIRUN:
            remedy = "need a sweep: add -m, as make sweep does" if self.config_name == "train" else "are not allowed"
            raise UserError(f"{several.input_line}: several values {remedy}; write a decimal as 0.1, a list as [0,1]")
        for item in self.values:
            key, value = item.key_or_group, item.value()
            if key in names:
                check_value(item, functools.reduce(dict.__getitem__, key.split("."), node))
            for name in [key, *(dotted(value, f"{key}.") if key in names else ())]:  # also of {name: value}
                if name not in names:
                    self.check_key(item, name, cfg, renamed, trusted=trusted)

    def check_key(
        self, item: Override, key: str, cfg: DictConfig, renamed: Mapping[str, str], *, trusted: bool
    ) -> None:
        """Refuse a key that neither the chosen nor the swept options have, unless it is added and read."""
        line, group = str(item.input_line), key.partition(".")[0]
        if line.startswith(("+hydra.", "++hydra.")):  # plugins of Hydra may read any key
            return
        cfgs = [cfg, *(self.compose(f"{group}={option}") for option in self.swept(cfg, group))]
        names = dict.fromkeys(name for one in cfgs for name in dotted(OmegaConf.to_container(one)))
        if in_list := re.match(r"(.+?)\.\d+(?:\.|$)", key):
            name = in_list[1]
            for held in (OmegaConf.select(one, name, throw_on_missing=False) for one in cfgs):
                if OmegaConf.is_list(held):
                    raise UserError(f"{line}: set the whole list, as in {name}={str(held).replace(', ', ',')}")
        cfgs = [*map(self.with_values, cfgs)]
        if key in names:
            if not (item.is_sweep_override() or line.startswith("+")):  # Hydra composes with the default option first
                raise UserError(f"{line}: {group} is swept, so type {key}=choice({line.partition('=')[2]})")
        elif not (line.startswith("+") and self.is_read(key, cfgs, trusted=trusted)):
            shown = {key: name for name, key in renamed.items()}
            raise UserError(unknown(line, key, [shown.get(name, name) for name in names], cfgs[0]))

    def swept(self, cfg: DictConfig, group: str) -> list[str]:
        """Return the options of a group that a sweep tries, whether typed or from a file in conf/sweep."""
        params = cfg.hydra.sweeper.get("params") or {}
        items = [*(self.parse(f"{key}={value}") for key, value in params.items()), *self.choices]
        swept = (item for item in items if item.key_or_group == group and item.is_sweep_override())
        return [option for item in swept for option in item.sweep_string_iterator()]

    def with_values(self, cfg: DictConfig) -> DictConfig:
        """Return a copy of a config in which the typed single values are set."""
        cfg = copy.deepcopy(cfg)
        OmegaConf.set_struct(cfg, False)
        for item in self.values:
            if not (item.is_sweep_override() or item.is_delete()):
                with suppress(OmegaConfBaseException):  # Hydra reports the mistake when it composes
                    OmegaConf.update(cfg, item.key_or_group, item.value(), force_add=True)
        return cfg

    def is_read(self, key: str, cfgs: Sequence[DictConfig], *, trusted: bool) -> bool:
        """Tell whether an added key is an argument of a class, or another value refers to it."""
        node, _, name = key.rpartition(".")
        specs = [other.key_or_group for other in self.values if isinstance(other.value(), dict)]
        if node == "callbacks" or (node == "logger" and key in specs):
            return True  # each entry is built
        classes = [] if name in GIVEN.get(node, ()) else filter(None, (target(cfg, key) for cfg in cfgs))
        if any(not trusted or takes(*of_class) for of_class in classes):
            return True
        texts = [str(item.input_line) for item in self.values]
        texts += [str(value) for cfg in cfgs for _, value in leaves(OmegaConf.to_container(cfg))]
        return any(refers(text, key) for text in texts)


def check_value(item: Override, now: Any) -> None:
    """Refuse to remove a key that each run needs, and to replace several values by a single one."""
    line, key, value = item.input_line, item.key_or_group, item.value()
    if item.is_add():
        remedy = f"type +{line}" if isinstance(value, dict) else "leave out the +"
        raise UserError(f"{line}: the config has {key} already; {remedy}")
    if isinstance(value, dict) and isinstance(now, (int, float)):
        raise UserError(f"{line}: {key} holds one value, as in {key}={now}")
    if item.is_delete() and now in (None, "???"):
        raise UserError(f"{line}: {key} has no value that could be removed; leave this out")
    if key == "hydra.sweeper.params" and not isinstance(value, dict | None):
        raise UserError(f"{line}: this key belongs to the files in conf/sweep; type the values to try, as in seed=1,2")
    if value == "" and key != "name":  # an empty path would mean the working directory
        raise UserError(f"{line}: the value is empty; give a value, or leave the key out")
    if item.is_sweep_override():
        return
    nested = "." in key
    if item.is_delete() and (not nested or key.endswith("._target_")):
        raise UserError(f"{line}: a run needs {key}; give it another value instead of removing it")
    if isinstance(now, dict) and not isinstance(value, dict) and not (nested and value is None):
        first = str(next(iter(now), ""))
        raise UserError(f"{line}: {key} holds several values; set one of them, as in {key}.{first}={now.get(first)}")
    if isinstance(now, str) and value is None and not nested and key != "metric":
        raise UserError(f"{line}: {key} needs a value, as in {key}={now}")


def dotted(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all keys of a config.

    >>> list(dotted({"seed": 0, "optimizer": {"lr": 0.1}}))
    ['seed', 'optimizer', 'optimizer.lr']
    """
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from dotted(value, f"{prefix}{key}.")


def nearest(key: str, names: Iterable[str]) -> str | None:
    """Return the name that is most similar to a key, above all in the last part; None if none is similar.

    >>> nearest("lr", ["seed", "optimizer.lr"]), nearest("optimiser", ["seed", "optimizer"]), nearest("note", ["seed"])
    ('optimizer.lr', 'optimizer', None)
    """

    def likeness(name: str) -> tuple[bool, bool, float, float]:
        pairs = (key.rpartition(".")[2], name.rpartition(".")[2]), (key, name)
        first, second = (difflib.SequenceMatcher(None, *pair).ratio() for pair in pairs)
        same_group = key.partition(".")[0] == name.partition(".")[0]
        return first >= 0.6 and (same_group or pairs[0][0] != "_target_"), first == 1 or same_group, first, second

    best = max(names, key=likeness, default="")
    return best if likeness(best)[0] else None


def unknown(line: str, key: str, names: Collection[str], cfg: DictConfig) -> str:
    """Write the message for a key that nothing reads; it names the options that have the key, or the nearest key."""
    if key.partition(".")[0] in names and (options := options_with(key)):
        return f"{line}: {key} is a key of {' and '.join(options)}; choose that option too"
    if near := nearest(key, [name for name in names if name.startswith("hydra.") == key.startswith("hydra.")]):
        return f"{line}: nothing reads {key}; did you mean {near}?"
    of_class = target(cfg, key)
    if of_class and of_class[1] != "_target_" and not line.startswith("+"):
        added = "+" if line.startswith(f"{key}=") else "++"  # ++ of {name: value}
        return f"{line}: conf/ has no {key}; if it is an argument of {of_class[0]}, type {added}{line}"
    return f"{line}: nothing reads {key}; --cfg job shows all keys"


def options_with(key: str) -> list[str]:
    """Return the options in conf/ whose files have a key.

    >>> options_with("loss.delta")
    ['loss=huber']
    """
    group, _, name = key.partition(".")
    files = sorted((CONF / group).glob("*.yaml")) if name and name != "_target_" and group != "logger" else []
    return [f"{group}={file.stem}" for file in files if name in dotted(OmegaConf.to_container(OmegaConf.load(file)))]


def refers(text: str, key: str) -> bool:
    """Tell whether a text refers to a key.

    >>> [refers(text, "optimizer.own") for text in ("${optimizer.own}", "${.own}", "${optimizer.lr}", "optimizer.own")]
    [True, True, False, False]
    """
    name, last = re.escape(key), re.escape(key.rpartition(".")[2])
    return re.search(rf"\$\{{[^}}]*((?<![\w.]){name}|(?<![\w\]])\.+{last})(?![\w:])", text) is not None


def target(cfg: DictConfig, key: str) -> tuple[str, str] | None:
    """Return the class of which a key may be an argument, and the argument; None if the key is in no class's node."""
    node = key
    while node:
        node, _, part = node.rpartition(".")
        holder = OmegaConf.select(cfg, node, throw_on_missing=False) if node else None
        if isinstance(holder, DictConfig) and holder.get("_target_"):
            return str(holder._target_), part
    return None


def takes(name: str, argument: str) -> bool:
    """Tell whether a class or function, by its dotted name, takes an argument; True if that is unknown."""
    if argument.startswith("_"):  # for Hydra, as _convert_
        return True
    module, _, attribute = name.rpartition(".")
    with suppress(ImportError, AttributeError, ValueError, TypeError):  # building it reports the mistake
        called = getattr(importlib.import_module(module), attribute)
        for kind in inspect.getmro(called) if inspect.isclass(called) else [called]:  # **kwargs go to the base class
            parameters = inspect.signature(kind.__init__ if inspect.isclass(kind) else kind).parameters
            if argument in parameters or all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
                return argument in parameters
    return True
