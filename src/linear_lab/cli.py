"""How a command starts: the command line in Hydra's order, the config that is composed, and how a mistake is shown.

Imports Hydra alone, so that --help, --cfg job, a mistyped override and tab completion answer at once.
"""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from string import Template
from typing import Any

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from linear_lab import CONF, UserError, overrides
from linear_lab.compat import without_collection
from linear_lab.config import register_resolvers, saved_config
from linear_lab.latest import with_latest
from linear_lab.runs.folder import MissingError, Run
from linear_lab.terminal import layout
from linear_lab.terminal.layout import failure, flag, in_quotes, split
from linear_lab.terminal.signals import raise_if_interrupted

TEXTS = (  # overrides whose value is one text, in which any character may stand
    "run", "resume", "output_root", "data.path", "input", "output", "data.separator", "data.decimal", "data.encoding",
    "separator", "decimal", "encoding", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
NAMES = ("name", "metric", "ckpt_path")  # overrides whose value is one text, or a sweep of some
COLUMNS = ("data.x", "data.y", "data.split", "tags")  # overrides that name a column, or a list of columns; or tags
PACKAGES = {  # that some choices need
    "launch=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launch=slurm": "hydra_plugins.hydra_submitit_launcher",
    "launch=ray": "hydra_plugins.hydra_ray_launcher",
    "logger=wandb": "wandb",
    "logger=mlflow": "mlflow",
}
MODES = ("--run", "-r", "--multirun", "-m", "--cfg", "-c", *layout.OPTIONAL_VALUE, "--shell-completion", "-sc")
SAVED = "saved"  # the name under which Hydra finds the config of a run that is resumed


def run(task: Callable[[DictConfig], Any], name: str, renamed: Mapping[str, str]) -> None:
    """Run the task of a command; see `command.entry`."""

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

    typed = sys.argv
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # a warning of a library is no reason to end a run
    if {"--help", "-h"} & {*typed[1:]}:
        print(help_text(name, flag(typed[1:], "--config-dir", "-cd")))
        return
    arguments = in_order(typed[1:], renamed)
    try:
        check_folders(arguments)
        arguments = with_latest(arguments, value_of("output_root", arguments) or "outputs")
        sys.argv = [typed[0], *arguments]
        check_flags(arguments, name)
        check_packages(arguments)
        register_resolvers()
        resume = value_of("resume", arguments) if name == "train" else None
        config_name = name if resume is None else store_saved_config(resume, arguments)
        check_typed(arguments, config_name, renamed)
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(run_task)()
    except (UserError, OmegaConfBaseException) as error:
        raise failure(explained(error)) from error
    finally:
        sys.argv, HydraConfig.instance().cfg = typed, None  # Hydra forgets that of a run, not of a sweep


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and Lightning, which takes most of a short command's time."""
    with without_collection():
        yield
    raise_if_interrupted()  # Python drops a KeyboardInterrupt that comes at the end of an import


def explained(error: Any) -> Any:
    """Name the key that the config lacks; say of a missing folder of a stack's job how to train that job alone."""
    if isinstance(error, OmegaConfBaseException):  # the config of each option is complete, so something was typed
        missing = isinstance(error, (ConfigAttributeError, ConfigKeyError))
        what = "the config has no such key" if missing else str(error).splitlines()[0]
        return UserError(f"{error.full_key or 'config'}: {what}; see --cfg job")
    if not isinstance(error, MissingError):
        return error
    from linear_lab.sweep import ranking

    with suppress(UserError):  # the results of stacks cannot be read
        if message := ranking.stacked_job_message(error.path):
            return UserError(f"{error.path}: {message}")
    return error


def help_text(name: str, folder: str | None = None) -> str:
    """Fill in conf/hydra/help/<name>.yaml with the options of conf/ and of a folder of the user's own.

    Hydra would copy its whole config for each group that it lists.
    """
    template = OmegaConf.load(CONF / "hydra/help" / f"{name}.yaml").template
    options: dict[str, set[str]] = {}
    for root in (CONF, *([Path(folder)] if folder else [])):
        for file in root.glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
    listed = "".join(f"{group}: {', '.join(sorted(options[group]))}\n" for group in sorted(options))
    return Template(template).substitute(APP_CONFIG_GROUPS=listed)


def required(cfg: DictConfig, key: str) -> None:
    """Refuse a command without a key that it needs."""
    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise UserError(f"{key}=<folder> is missing; name a run folder, as in {key}=outputs/runs/<id>, or latest")


def is_group(key: str) -> bool:
    return bool(key) and (CONF / key).is_dir()


def in_order(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Put a command line into the form that Hydra reads: flags before overrides, values quoted, groups without ``+``.

    >>> in_order(["seed=1", "-m", "run=a b", "+optimizer=adam"], {})
    ['-m', 'seed=1', "run='a b'", 'optimizer=adam']
    """
    flags, typed = split(arguments)
    texts = [*TEXTS, *renamed.values()]
    ordered: list[str] = []
    for argument in typed:
        key, equals, value = argument.partition("=")
        # the defaults list holds it, so that Hydra refuses +
        if key.startswith("+") and is_group(key.lstrip("+")) and not value.startswith("{"):
            key = key.lstrip("+")
        if key == "experiment" and value == "null":  # which is train.yaml's value, but Hydra does not take it typed
            ordered = [item for item in ordered if not item.startswith("experiment=")]
            continue
        ordered.append(quoted(f"{renamed.get(key, key)}{equals}{value}", texts))
    return flags + ordered


def quoted(override: str, texts: list[str]) -> str:
    """Quote a path or the name of a column for Hydra's grammar, which stumbles over ``=``, a space or an accent in it.

    >>> quoted("run=outputs/a=b, c", ["run"])
    "run='outputs/a=b, c'"
    >>> quoted("data.x=[living area,größe]", [])
    "data.x=['living area','größe']"
    >>> quoted("name=study1", []), quoted("name=1e3", [])
    ('name=study1', "name='1e3'")
    """
    key, equals, value = override.partition("=")
    if not equals or value in ("", "null", "[]"):
        return override
    if key in NAMES:
        with suppress(HydraException, ValueError, RecursionError):
            parsed = OverridesParser.create().parse_override(override).value()
            if "," in value or parsed == value:
                return override  # 1e3 would be a number
    if key in COLUMNS:
        several = value.startswith("[") and value.endswith("]")
        names = value[1:-1] if several else value
        if set("[]{}'\"") & set(names) or ("," in names and not several):
            return override  # written as Hydra wants it, or a sweep
        names = ",".join(in_quotes(name.strip()) for name in names.split(","))
        return f"{key}=[{names}]" if several else f"{key}={names}"
    return f"{key}={in_quotes(value)}" if key in (*NAMES, *texts) and value[0] not in "'\"" else override


def check_flags(arguments: list[str], name: str) -> None:
    """Refuse flags that Hydra would answer with a traceback, and letters that the locale lacks."""
    encoding = sys.getfilesystemencoding()
    if not all(map(str.isascii, arguments)) and encoding != "utf-8":
        raise UserError(f"this locale has {encoding} letters alone, and others were typed; set PYTHONUTF8=1")
    given = [item.partition("=")[0] for item in split(arguments)[0]]
    modes = [item for item in given if item in MODES]
    if len(modes) > 1:
        raise UserError(f"{' '.join(modes)}: these exclude each other; leave one out")
    if name != "train" and {"-m", "--multirun"} & {*given}:
        raise UserError(f"{modes[0]}: is for training; linear_lab.{name} does one thing at a time, so leave it out")
    if "--resolve" in given and flag(arguments, "--cfg", "-c") == "hydra":
        raise UserError("--resolve: a run alone has all of Hydra's own values; try --cfg job, or leave it out")
    if (folder := flag(arguments, "--config-dir", "-cd")) is not None and not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: there is no such folder")
    if (file := flag(arguments, "--experimental-rerun")) is not None and not Path(file).is_file():
        raise UserError(f"--experimental-rerun {file}: there is no such file")


def check_packages(arguments: list[str]) -> None:
    """Refuse an option whose package is missing, which Hydra would answer with a traceback."""
    for argument in arguments:
        group, _, options = argument.partition("=")
        for option in options.strip("[]").split(","):
            package = PACKAGES.get(f"{group}={option.strip()}")
            if package and importlib.util.find_spec(package) is None:
                raise UserError(f"{argument}: its package is not installed; {layout.installing(option.strip())}")


def check_typed(arguments: list[str], config_name: str, renamed: Mapping[str, str]) -> None:
    """Refuse overrides that no run reads, before Hydra composes: it advises to add such a key with ``+``."""
    lines, folder = split(arguments)[1], flag(arguments, "--config-dir", "-cd")
    completion = {"-sc", "--shell-completion"} & {*arguments}
    if lines and not completion and flag(arguments, "--config-path", "-cp", "--config-name", "-cn") is None:
        multirun = bool({"-m", "--multirun"} & {*arguments})
        overrides.check(lines, config_name, renamed, folder, trusted=config_name != SAVED, multirun=multirun)


def check_folders(arguments: list[str]) -> None:
    """Refuse folders of unknown users, a working directory that is gone, and a hydra.run.dir that cannot be made."""
    for key in ("output_root", "run", "resume", "ckpt_path", "data.path", "input", "output", "folder"):
        try:
            Path(value := value_of(key, arguments) or "").expanduser()
        except RuntimeError:
            raise UserError(f"{key}={value}: there is no such user; a folder of that name is ./{value}") from None
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory has been deleted; change to another one, as by cd ~") from None
    folder, flags = value_of("hydra.run.dir", arguments) or "", split(arguments)[0]
    try:
        if folder and "${" not in folder and not {*flags} & {*MODES}:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"hydra.run.dir={folder}: cannot make a run folder there ({why}); choose another") from None


def value_of(key: str, arguments: list[str]) -> str | None:
    """Return the text that was typed for a key, None where nothing or null was.

    >>> [value_of("resume", [typed]) for typed in ("resume='a=b'", "resume=null", "seed=1")]
    ['a=b', None, None]
    """
    values = [item for item in split(arguments)[1] if item.startswith(f"{key}=")]
    value = OverridesParser.create().parse_override(values[-1]).value() if values else None
    return str(value) if value not in (None, "") else None


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
        if equals and group.lstrip("+") == "ckpt_path":
            raise UserError(f"resume={run.path}: it goes on with weights of its own; leave out {argument}, or resume=")
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
