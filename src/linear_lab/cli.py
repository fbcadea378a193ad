"""How a command starts: the command line in Hydra's order, the config that is composed, and how a mistake is shown.

Imports Hydra alone, so that --help, --cfg job, a mistyped override and tab completion answer at once.
"""

import difflib
import importlib.util
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import CompactHydraException, HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import OmegaConfBaseException

from linear_lab import CONF, UserError
from linear_lab.compat import without_collection
from linear_lab.config import register_resolvers, saved_config
from linear_lab.runs.folder import MissingError, Run
from linear_lab.terminal.layout import failure, in_quotes, python
from linear_lab.terminal.output import lasting_output
from linear_lab.terminal.signals import CtrlC, raise_if_interrupted

TEXTS = (  # overrides whose value is one text, in which any character may stand
    "run", "resume", "output_root", "data.path", "input", "output", "data.separator", "data.decimal", "data.encoding",
    "separator", "decimal", "encoding",
)  # fmt: skip
COLUMNS = ("data.x", "data.y", "data.split")  # overrides that name a column, or a list of columns
PACKAGES = {  # that some choices need
    "launch=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launch=slurm": "hydra_plugins.hydra_submitit_launcher",
    "launch=ray": "hydra_plugins.hydra_ray_launcher",
    "sweep=search": "optuna",
}
FLAGS_WITH_VALUE = {
    "--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd",
    "--info", "-i", "--experimental-rerun",
}  # fmt: skip
SAVED = "saved"  # the name under which Hydra finds the config of a run that is resumed
Task = Callable[[DictConfig], Any]


def entry(name: str, renamed: Mapping[str, str] | None = None) -> Callable[[Task], Callable[[], None]]:
    """Make a command of a task: a function of the config that conf/<name>.yaml and the command line compose.

    Args:
        name: of the command.
        renamed: keys that Hydra would take for config groups, and the keys of the config that they stand for.
    """

    def decorate(task: Task) -> Callable[[], None]:
        def run_task(cfg: DictConfig) -> Any:
            logging.captureWarnings(True)  # into the log file: they are about libraries, not about what the user did
            hydra_cfg: Any = HydraConfig.get()
            with read_write(hydra_cfg):
                hydra_cfg.run.dir = hydra_cfg.runtime.output_dir  # Lightning tells it to the processes that DDP adds
            try:
                raise_if_interrupted()
                return task(cfg)
            except Exception as error:
                raise_if_interrupted()  # a library may have wrapped the KeyboardInterrupt in its own exception
                error = explained(error)
                if hydra_cfg.mode == RunMode.MULTIRUN:  # any process may have to unpickle it
                    raise UserError(str(error) if isinstance(error, UserError) else repr(error)) from None
                if not isinstance(error, UserError):
                    raise  # Hydra shows the traceback
                raise failure(error) from error

        @lasting_output()
        def main() -> None:
            typed = sys.argv
            if {"--help", "-h"} & {*typed[1:]}:
                print(help_text(name))
                return
            arguments = in_order(typed[1:], renamed or {})
            sys.argv = [typed[0], *arguments]
            with CtrlC():
                try:
                    check_choices(arguments)
                    check_folders(arguments)
                    register_resolvers()
                    resume = resumed(arguments) if name == "train" else None
                    config_name = name if resume is None else store_saved_config(resume, arguments)
                    hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(run_task)()
                except UserError as error:
                    raise failure(explained(error)) from error
                except SystemExit as end:
                    if isinstance(end.__context__, HydraException) and (hint := suggestion(arguments, name)):
                        print(f"Did you mean {hint}?", file=sys.stderr)  # below Hydra's own message
                    raise
                finally:
                    sys.argv = typed

        return main

    return decorate


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and Lightning, which takes most of a short command's time."""
    with without_collection():
        yield
    raise_if_interrupted()  # Python drops a KeyboardInterrupt that comes at the end of an import


def explained(error: Any) -> Any:
    """Say of a missing run folder, if it is one of a stack's job, how to train that job alone."""
    if not isinstance(error, MissingError):
        return error
    from linear_lab.sweep import ranking

    with suppress(UserError):  # the results of stacks cannot be read
        if message := ranking.stacked_job_message(error.path):
            return UserError(f"{error.path}: {message}")
    return error


def help_text(name: str) -> str:
    """Fill in conf/hydra/help/<name>.yaml; Hydra would copy its whole config for each group that it lists."""
    template = OmegaConf.load(CONF / "hydra/help" / f"{name}.yaml").template
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "hydra")
    listed = "".join(f"{group}: {', '.join(options(group))}\n" for group in groups)
    return Template(template).substitute(APP_CONFIG_GROUPS=listed)


def required(cfg: DictConfig, key: str) -> None:
    """Refuse a command without a key that it needs."""
    if OmegaConf.is_missing(cfg, key):
        raise UserError(f"{key}=<folder> is missing; name a run folder, as in {key}=outputs/runs/<id>")


def options(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def is_group(key: str) -> bool:
    return bool(key) and (CONF / key).is_dir()


def in_order(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Put a command line into the form that Hydra reads: flags before overrides, values quoted, groups without ``+``.

    >>> in_order(["seed=1", "-m", "run=a b", "+optimizer=adam"], {})
    ['-m', 'seed=1', "run='a b'", 'optimizer=adam']
    """
    flags: list[str] = []
    overrides: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or (flags and flags[-1] in FLAGS_WITH_VALUE):
            flags.append(argument)
            continue
        key, equals, value = argument.partition("=")
        if key.startswith("+") and is_group(key.lstrip("+")):  # the defaults list holds it, so that Hydra refuses +
            key = key.lstrip("+")
        overrides.append(quoted(f"{renamed.get(key, key)}{equals}{value}", [*TEXTS, *renamed.values()]))
    return flags + overrides


def quoted(override: str, texts: list[str]) -> str:
    """Quote a path or the name of a column for Hydra's grammar, which stumbles over ``=``, a space or an accent in it.

    >>> quoted("run=outputs/a=b, c", ["run"])
    "run='outputs/a=b, c'"
    >>> quoted("data.x=[living area,größe]", [])
    "data.x=['living area','größe']"
    """
    key, equals, value = override.partition("=")
    if not equals or value in ("", "null", "[]"):
        return override
    if key in COLUMNS:
        several = value.startswith("[") and value.endswith("]")
        items = value[1:-1].split(",") if several else [value]
        if any(character in item for item in items for character in "[]{}'\"") or ("," in value and not several):
            return override  # written as Hydra wants it, or a sweep
        items = [in_quotes(item.strip()) for item in items]
        return f"{key}=[{','.join(items)}]" if several else f"{key}={items[0]}"
    return f"{key}={in_quotes(value)}" if key in texts and value[0] not in "'\"" else override


def parsed(arguments: list[str]) -> Iterator[Override]:
    """Yield those overrides of a command line that Hydra can read."""
    parser = OverridesParser.create()
    for argument in arguments:
        if not argument.startswith("-"):
            with suppress(HydraException):
                yield parser.parse_override(argument)


def check_choices(arguments: list[str]) -> None:
    """Refuse what Hydra would answer with a traceback: a group without an option, or one whose package is missing."""
    for argument in arguments:
        group, _, option = argument.partition("=")
        if option == "null" and group != "experiment" and is_group(group):
            raise UserError(f"{argument}: choose one of {', '.join(options(group))}")
        if argument in PACKAGES and importlib.util.find_spec(PACKAGES[argument]) is None:
            extra = {"sweep=search": "search"}.get(argument, option)
            raise UserError(f"{argument}: its package is not installed; {python()} -m pip install -e '.[{extra}]'")


def check_folders(arguments: list[str]) -> None:
    """Refuse folders at which Hydra would fail with a traceback: the working directory, and that of hydra.run.dir."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory has been deleted; change to another one, as by cd ~") from None
    for override in parsed(arguments):
        if override.key_or_group == "hydra.run.dir" and "${" not in (folder := str(override.value())):
            try:
                Path(folder).mkdir(parents=True, exist_ok=True)
            except (OSError, ValueError) as error:
                why = getattr(error, "strerror", None) or error
                raise UserError(f"hydra.run.dir={folder}: no run can be kept there ({why}); choose another") from None


def resumed(arguments: list[str]) -> str | None:
    """Return the folder of the run that shall be resumed.

    >>> resumed(["resume='a=b'"]), resumed(["resume=null"]), resumed(["seed=1"])
    ('a=b', None, None)
    """
    values = [override.value() for override in parsed(arguments) if override.key_or_group == "resume"]
    return None if not values or values[-1] is None else str(values[-1])


def store_saved_config(folder: str, arguments: list[str]) -> str:
    """Put the saved config of a run where Hydra finds configs by name, and return the name.

    Raises:
        UserError: if there is no such run; for a sweep, and for a choice of a group: the saved config has made it.
    """
    run = Run.open(folder, "resume")
    for argument in arguments:
        group, equals, _ = argument.partition("=")
        if argument in ("-m", "--multirun"):
            raise UserError(f"resume={run.path}: one run goes on; {argument} starts many, so leave it out")
        if equals and is_group(group):
            raise UserError(
                f"resume={run.path}: the run goes on with its own {group}, so {argument} cannot be chosen; "
                "single values of trainer, callbacks and console can change, as in trainer.max_epochs=1000"
            )
    node: Any = OmegaConf.to_container(saved_config(run))
    logging_of_ours = {"override hydra/hydra_logging": "warnings"}, {"override hydra/job_logging": "terminal"}
    node["defaults"] = ["_self_", *logging_of_ours]
    node["hydra"] = {"job": {"name": "train"}, "run": {"dir": str(run.path.resolve())}, "output_subdir": None}
    ConfigStore.instance().store(SAVED, node)
    return SAVED


def suggestion(arguments: list[str], name: str) -> str | None:
    """Return the option or the key nearest to the first one that was typed and that there is not."""
    overrides = [override for override in parsed(arguments) if isinstance(override.key_or_group, str)]
    groups = {item.key_or_group: str(item.value()) for item in overrides if is_group(item.key_or_group)}
    for group, option in groups.items():
        if option not in options(group):
            return next((f"{group}={match}" for match in difflib.get_close_matches(option, options(group), n=1)), None)
    try:
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            chosen = [f"{group}={option}" for group, option in groups.items()]
            cfg = OmegaConf.to_container(hydra.compose(name, chosen, return_hydra_config=True))
    except (CompactHydraException, OmegaConfBaseException):
        return None
    names = list(keys(cfg))
    wrong = (item.key_or_group for item in overrides if item.key_or_group not in names and not item.is_add())
    return next((match for key in wrong for match in difflib.get_close_matches(key, names, n=1)), None)


def keys(node: Any, prefix: str = "") -> Iterator[str]:
    """Yield the dotted names of all that a config holds."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield f"{prefix}{key}"
            yield from keys(value, f"{prefix}{key}.")
