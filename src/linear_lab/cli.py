"""How an entry starts: where conf/ lies, what Hydra is told, and how a mistake is shown.

Imports Hydra alone, so that --help, --cfg job, a mistyped override and tab completion answer at once.
"""

import difflib
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from linear_lab import CONF, UserError
from linear_lab.runs import atomic, folder
from linear_lab.terminal.layout import CtrlC, failure, heed, in_quotes, python

TEXTS = (  # overrides whose value is one text, in which any character may stand
    "run", "resume", "output_root", "data.path", "input", "output", "data.separator", "data.decimal", "data.encoding",
    "separator", "decimal", "encoding",
)  # fmt: skip
COLUMNS = ("data.x", "data.y", "data.split")  # and those that name a column, or a list of them
WANTED = {  # packages that some choices want
    "launch=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launch=slurm": "hydra_plugins.hydra_submitit_launcher",
    "launch=ray": "hydra_plugins.hydra_ray_launcher",
    "sweep=search": "optuna",
}
Task = Callable[[DictConfig], Any]


def entry(name: str) -> Callable[[Task], Callable[[], None]]:
    """Make a command of a task: a function of the config that conf/<name>.yaml and the command line compose."""

    def decorate(task: Task) -> Callable[[], None]:
        def started(cfg: DictConfig) -> Any:
            logging.captureWarnings(True)  # into the log file: they are about libraries, not about what the user did
            hydra_cfg: Any = HydraConfig.get()
            with read_write(hydra_cfg):
                hydra_cfg.run.dir = hydra_cfg.runtime.output_dir  # Lightning tells it to the processes that DDP adds
            try:
                heed()
                return task(cfg)
            except Exception as error:
                heed()  # it may have become that error
                logging.getLogger(name).info("failed", exc_info=True)  # for the file
                error = explained(error)
                if hydra_cfg.mode == RunMode.MULTIRUN:  # from whichever process, of whichever class
                    raise UserError(str(error) if isinstance(error, UserError) else repr(error)) from None
                if not isinstance(error, UserError):
                    raise  # Hydra shows the traceback
                raise failure(error) from error

        def main() -> None:
            arguments = sys.argv
            if {"--help", "-h"} & {*arguments[1:]}:
                print(help_text(name))
                return
            sys.argv = [arguments[0], *map(quoted, arguments[1:])]
            with CtrlC():
                try:
                    config_path, config_name = CONF, name
                    check_choices(arguments[1:])
                    resume = resumed(arguments) if name == "train" else None
                    if resume is not None:
                        config_path = (folder.Run.open(resume, "resume").path / folder.CONFIG).parent.resolve()
                        config_name = "config"
                        sys.argv = [arguments[0], f"--config-dir={CONF}", *resuming(config_path.parent)]
                    register_resolvers()
                    hydra.main(config_path=str(config_path), config_name=config_name, version_base="1.3")(started)()
                except UserError as error:
                    raise failure(explained(error)) from error
                except SystemExit as end:
                    hint = nearest(str(end.__context__), name)  # Hydra has shown its own message
                    if hint:
                        print(f"Did you mean {hint}?", file=sys.stderr)
                    raise
                finally:
                    sys.argv = arguments

        return main

    return decorate


def explained(error: Any) -> Any:
    """Say of a run folder that is not there, if that is so, that its job was trained in a stack."""
    if not isinstance(error, folder.MissingError):
        return error
    from linear_lab.sweep import ranking

    with suppress(UserError):  # the results of stacks cannot be read
        if said := ranking.of_stack(error.path):
            return UserError(f"{error.path}: {said}")
    return error


def help_text(name: str) -> str:
    """Fill in conf/hydra/help/<name>.yaml; Hydra would copy its whole config for each group that it lists."""
    template = OmegaConf.load(CONF / "hydra/help" / f"{name}.yaml").template
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    listed = "".join(f"{group}: {', '.join(options(group))}\n" for group in groups)
    return Template(template).substitute(APP_CONFIG_GROUPS=listed)


def required(cfg: DictConfig, key: str) -> None:
    """Refuse a command without a key that it cannot do without.

    Raises:
        UserError: naming the key.
    """
    if OmegaConf.is_missing(cfg, key):
        raise UserError(f"{key}=<folder> is missing; name a run folder, as in {key}=outputs/runs/<id>")


def register_resolvers() -> None:
    """Have the config name folders."""
    OmegaConf.register_new_resolver("new_folder", new_folder, replace=True)
    OmegaConf.register_new_resolver("sweep_folder", sweep_folder, replace=True)
    OmegaConf.register_new_resolver("workers", workers, replace=True)
    OmegaConf.register_new_resolver("gpus", gpus, replace=True)


def new_folder(parent: str, optimizer: str = "") -> str:
    """Make the folder of a run or a sweep; as a resolver in the config, before Hydra writes there."""
    try:
        return atomic.new(parent, optimizer)
    except UserError as error:  # OmegaConf would wrap it into an error of its own
        raise failure(error) from error


def sweep_folder(parent: str, name: str | None) -> str:
    """Make the folder of a sweep, or find the one of that name."""
    if name is None:
        return new_folder(parent)
    try:
        if atomic.plain(str(name)) != str(name) or str(name)[:1] in ("", ".", "_", "-"):
            raise UserError(
                f"name={name}: it is a folder's name, of letters, digits and . _ = + -, at most {atomic.LONGEST_NAME}, "
                "and begins with a letter or digit; try name=study1"
            )
        folder = Path(parent).expanduser() / str(name)
        with suppress(FileExistsError):
            atomic.make(folder)
            return str(folder)
        atomic.check_room(folder)
    except UserError as error:
        raise failure(error) from error
    return str(folder)


def workers(accelerator: str) -> int:
    """How many jobs run at once on this machine: one a core, or one a GPU where they train on one."""
    if accelerator in ("gpu", "cuda", "auto"):
        import torch

        if torch.cuda.device_count() or accelerator != "auto":
            return max(torch.cuda.device_count(), 1)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def gpus(accelerator: str, devices: Any) -> Any:
    """How many GPUs a job wants; None where it trains on the CPU."""
    return devices if accelerator in ("gpu", "cuda") else None


def check_choices(arguments: list[str]) -> None:
    """Refuse what Hydra would answer with a traceback: a group without an option.

    Raises:
        UserError: naming the group and its options.
    """
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option == "null" and group != "experiment" and (CONF / group).is_dir():
            raise UserError(f"{argument}: choose one of {', '.join(options(group))}")
        if argument in WANTED and importlib.util.find_spec(WANTED[argument]) is None:
            extra = {"sweep=search": "search"}.get(argument, option)
            raise UserError(f"{argument}: its package is not installed; {python()} -m pip install -e '.[{extra}]'")


def options(group: str) -> list[str]:
    """Names of a group's options."""
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def resumed(arguments: list[str]) -> str | None:
    """Return the folder that shall go on; None for none, or what Hydra will say that it cannot read.

    >>> resumed(["resume=a=b"]), resumed(["resume='a=b'"]), resumed(["resume=null"])
    ('a=b', 'a=b', None)
    """
    typed = next((argument for argument in arguments if argument.startswith("resume=")), "resume=null")
    try:
        value: Any = OverridesParser.create().parse_override(quoted(typed)).value()
    except HydraException:
        return None
    return None if value is None else str(value)


def resuming(folder: Path) -> list[str]:
    """Return the arguments by which Hydra composes the saved config of a run, and writes no other one.

    Raises:
        UserError: for a sweep, and for a choice of a group: the saved config has made it.
    """
    arguments: list[str] = []
    for argument in sys.argv[1:]:
        group, equals, _ = argument.partition("=")
        if argument in ("-m", "--multirun"):
            raise UserError(f"resume={folder}: one run goes on; {argument} starts many, so leave it out")
        if equals and (CONF / group).is_dir():
            raise UserError(
                f"resume={folder}: the run goes on with its own {group}, so {argument} cannot be chosen; "
                "single values of trainer, callbacks and console can change, as in trainer.max_epochs=1000"
            )
        arguments.append(argument)
        if group == "resume":  # beside it: argparse wants all overrides in one row
            arguments += [
                "hydra/job_logging=file",
                "hydra.job.name=train",
                quoted(f"hydra.run.dir={folder}", ("hydra.run.dir",)),
                "hydra.output_subdir=null",
            ]
    return arguments


def quoted(argument: str, texts: tuple[str, ...] = TEXTS) -> str:
    """Quote a path or the name of a column for Hydra's grammar, which stumbles over ``=``, a space or an accent in it.

    >>> quoted("run=outputs/a=b, c")
    "run='outputs/a=b, c'"
    >>> quoted("data.x=[living area,größe]")
    "data.x=['living area','größe']"
    """
    key, equals, value = argument.partition("=")
    if not equals or value in ("", "null", "[]"):
        return argument
    if key in COLUMNS:
        several = value.startswith("[") and value.endswith("]")
        items = value[1:-1].split(",") if several else [value]
        if any(character in item for item in items for character in "[]{}'\"") or ("," in value and not several):
            return argument  # written as Hydra wants it, or a sweep
        items = [in_quotes(item.strip()) for item in items]
        return f"{key}=[{','.join(items)}]" if several else f"{key}={items[0]}"
    return f"{key}={in_quotes(value)}" if key in texts and value[0] not in "'\"" else argument


def nearest(message: str, name: str) -> str | None:
    """Return the key or option nearest to the one that Hydra does not know."""
    if option := re.search(r"Could not find '([^']+)/([^'/]+)'", message):
        group, wrong = option.groups()
        return next((f"{group}={match}" for match in difflib.get_close_matches(wrong, options(group), n=1)), None)
    if key := re.search(r"Could not override '([^'@]+)'", message):
        groups = [argument for argument in sys.argv[1:] if (CONF / argument.partition("=")[0]).is_dir()]
        try:
            with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
                whole = key[1].startswith("hydra.")
                cfg = hydra.compose(name, [group for group in groups if "," not in group], return_hydra_config=whole)
        except CompactHydraException:
            return None
        return next(iter(difflib.get_close_matches(key[1], list(keys(cfg)), n=1)), None)
    return None


def keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all that a config holds."""
    for key in map(str, cfg):
        yield prefix + key
        value = cfg._get_node(key)  # cfg[key] would resolve what is not there yet
        if isinstance(value, DictConfig):
            yield from keys(value, f"{prefix}{key}.")
