"""How a command starts: it checks the command line, has Hydra compose the config, and shows a mistake in one line.

Of the large libraries this imports only Hydra, so that --help, --cfg job, a typing error and tab completion are quick.
"""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
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

TEXTS = (  # overrides whose value is one text, which may contain any character
    "run", "resume", "output_root", "data.path", "input", "output", "data.separator", "data.decimal", "data.encoding",
    "separator", "decimal", "encoding", "hydra.run.dir", "hydra.sweep.dir",
)  # fmt: skip
NAMES = ("name", "metric", "ckpt_path")  # overrides whose value is one text, or several in a sweep
COLUMNS = ("data.x", "data.y", "data.split", "tags")  # overrides with a name or a list of names
PACKAGES = {  # the package that an option needs
    "launch=joblib": "hydra_plugins.hydra_joblib_launcher",
    "launch=slurm": "hydra_plugins.hydra_submitit_launcher",
    "launch=ray": "hydra_plugins.hydra_ray_launcher",
    "logger=wandb": "wandb",
    "logger=mlflow": "mlflow",
}
MODES = ("--run", "-r", "--multirun", "-m", "--cfg", "-c", *layout.OPTIONAL_VALUE, "--shell-completion", "-sc")
SAVED = "saved"  # the name under which Hydra finds the config of a resumed run


def run(task: Callable[[DictConfig], Any], name: str, renamed: Mapping[str, str]) -> None:
    """Run the task of a command; see `command.entry`."""

    def run_task(cfg: DictConfig) -> Any:
        logging.captureWarnings(True)  # libraries' warnings go to the log file
        hydra_cfg: Any = HydraConfig.get()
        with read_write(hydra_cfg):
            hydra_cfg.run.dir = hydra_cfg.runtime.output_dir  # Lightning passes it to the processes of DDP
        try:
            raise_if_interrupted()
            return task(cfg)
        except Exception as error:
            raise_if_interrupted()  # a library may have wrapped the KeyboardInterrupt in its own exception
            error = explained(error)
            if hydra_cfg.mode == RunMode.MULTIRUN:  # the launcher's process must be able to unpickle it
                raise UserError(str(error) if isinstance(error, UserError) else repr(error)) from None
            if not isinstance(error, UserError):
                raise  # Hydra shows the traceback
            raise failure(error) from error

    typed = sys.argv
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.simplefilter("default")  # a library's warning must not end a run
    if {"--help", "-h"} & {*typed[1:]}:
        print(layout.help_text(name, flag(typed[1:], "--config-dir", "-cd")))
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
        sys.argv, HydraConfig.instance().cfg = typed, None  # Hydra clears it after a run, but not after a sweep


@contextmanager
def importing() -> Iterator[None]:
    """Import torch and Lightning inside this block; the imports take most of a short command's time."""
    with without_collection():
        yield
    raise_if_interrupted()  # Python loses a KeyboardInterrupt at the end of an import


def explained(error: Any) -> Any:
    """Turn an error of the config, or of a job without a folder, into a UserError that says what to do."""
    if isinstance(error, OmegaConfBaseException):  # an override caused it: without one, each config is complete
        missing = isinstance(error, (ConfigAttributeError, ConfigKeyError))
        what = "the config has no such key" if missing else str(error).splitlines()[0]
        return UserError(f"{error.full_key or 'config'}: {what}; --cfg job shows all keys")
    if not isinstance(error, MissingError):
        return error
    from linear_lab.sweep import ranking

    with suppress(UserError):  # raised if the results of stacks cannot be read
        if message := ranking.stacked_job_message(error.path):
            return UserError(f"{error.path}: {message}")
    return error


def required(cfg: DictConfig, key: str) -> None:
    """Refuse to start without a key that the command needs."""
    if OmegaConf.is_missing(cfg, key) or cfg[key] is None:
        raise UserError(f"{key}=<folder> is missing; name a run folder, as in {key}=outputs/runs/<id> or {key}=latest")


def is_group(key: str) -> bool:
    return bool(key) and (CONF / key).is_dir()


def in_order(arguments: list[str], renamed: Mapping[str, str]) -> list[str]:
    """Rewrite a command line for Hydra: flags before overrides, values in quotes, groups without ``+``.

    >>> in_order(["seed=1", "-m", "run=a b", "+optimizer=adam"], {})
    ['-m', 'seed=1', "run='a b'", 'optimizer=adam']
    """
    flags, typed = split(arguments)
    texts = [*TEXTS, *renamed.values()]
    ordered: list[str] = []
    for argument in typed:
        key, equals, value = argument.partition("=")
        # the defaults list has the group, so Hydra refuses the +
        if key.startswith("+") and is_group(key.lstrip("+")) and not value.startswith("{"):
            key = key.lstrip("+")
        if key == "experiment" and value == "null":  # the default, which Hydra refuses if it is typed
            ordered = [item for item in ordered if not item.startswith("experiment=")]
            continue
        ordered.append(quoted(f"{renamed.get(key, key)}{equals}{value}", texts))
    return flags + ordered


def quoted(override: str, texts: list[str]) -> str:
    """Quote a path or a column's name for Hydra's grammar, which allows no ``=``, space or accent outside of quotes.

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
                return override  # without quotes, 1e3 is a number
    if key in COLUMNS:
        several = value.startswith("[") and value.endswith("]")
        names = value[1:-1] if several else value
        if set("[]{}'\"") & set(names) or ("," in names and not several):
            return override  # in Hydra's own form, or a sweep
        names = ",".join(in_quotes(name.strip()) for name in names.split(","))
        return f"{key}=[{names}]" if several else f"{key}={names}"
    return f"{key}={in_quotes(value)}" if key in (*NAMES, *texts) and value[0] not in "'\"" else override


def check_flags(arguments: list[str], name: str) -> None:
    """Refuse flags for which Hydra shows a traceback, and characters that the locale cannot encode."""
    encoding = sys.getfilesystemencoding()
    if not all(map(str.isascii, arguments)) and encoding != "utf-8":
        raise UserError(f"this locale has only {encoding} characters, and others were typed; set PYTHONUTF8=1")
    given = [item.partition("=")[0] for item in split(arguments)[0]]
    modes = [item for item in given if item in MODES]
    if len(modes) > 1:
        raise UserError(f"{' '.join(modes)}: only one of these can be used; leave out the others")
    if name != "train" and {"-m", "--multirun"} & {*given}:
        raise UserError(f"{modes[0]}: only linear_lab.train has this flag; leave it out")
    if "--resolve" in given and flag(arguments, "--cfg", "-c") == "hydra":
        raise UserError("--resolve: Hydra's own values are known only during a run; leave it out, or try --cfg job")
    check_config_dir(flag(arguments, "--config-dir", "-cd"))
    if (file := flag(arguments, "--experimental-rerun")) is not None and not Path(file).is_file():
        raise UserError(f"--experimental-rerun {file}: there is no such file")


def check_config_dir(folder: str | None) -> None:
    """Refuse a missing folder, and files in it that Hydra would ignore, since linear_lab has options of their names."""
    if folder is None:
        return
    if not Path(folder).is_dir():
        raise UserError(f"--config-dir {folder}: there is no such folder")
    for file in sorted(Path(folder).rglob("*.yaml")):
        if (CONF / file.relative_to(folder)).exists() and not CONF.samefile(folder):
            raise UserError(f"{file}: linear_lab has an option of this name, and would use that one; rename it")


def check_packages(arguments: list[str]) -> None:
    """Refuse an option whose package is missing, for which Hydra shows a traceback."""
    for argument in arguments:
        group, _, options = argument.partition("=")
        for option in options.strip("[]").split(","):
            package = PACKAGES.get(f"{group}={option.strip()}")
            if package and importlib.util.find_spec(package) is None:
                raise UserError(f"{argument}: a package is missing; run {layout.installing(option.strip())}")


def check_typed(arguments: list[str], config_name: str, renamed: Mapping[str, str]) -> None:
    """Refuse overrides that nothing reads, before Hydra composes, which would advise to add the key with ``+``."""
    lines, folder = split(arguments)[1], flag(arguments, "--config-dir", "-cd")
    completion = {"-sc", "--shell-completion"} & {*arguments}
    if lines and not completion and flag(arguments, "--config-path", "-cp", "--config-name", "-cn") is None:
        multirun = bool({"-m", "--multirun"} & {*arguments})
        overrides.check(lines, config_name, renamed, folder, trusted=config_name != SAVED, multirun=multirun)


def check_folders(arguments: list[str]) -> None:
    """Refuse folders of unknown users, a deleted working directory, and a hydra.run.dir that cannot be created."""
    for key in ("output_root", "run", "resume", "ckpt_path", "data.path", "input", "output", "folder"):
        try:
            Path(value := value_of(key, arguments) or "").expanduser()
        except RuntimeError:
            raise UserError(f"{key}={value}: there is no such user; if it is a folder, type {key}=./{value}") from None
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory was deleted; change to another one, for example with cd ~") from None
    folder, flags = value_of("hydra.run.dir", arguments) or "", split(arguments)[0]
    try:
        if folder and "${" not in folder and not {*flags} & {*MODES}:
            Path(folder).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise UserError(f"hydra.run.dir={folder}: cannot make a run folder there ({why}); choose another") from None


def value_of(key: str, arguments: list[str]) -> str | None:
    """Return the text that was typed for a key; None for null, and if the key was not typed.

    >>> [value_of("resume", [typed]) for typed in ("resume='a=b'", "resume=null", "seed=1")]
    ['a=b', None, None]
    """
    values = [item for item in split(arguments)[1] if item.startswith(f"{key}=")]
    value = OverridesParser.create().parse_override(values[-1]).value() if values else None
    return str(value) if value not in (None, "") else None


def store_saved_config(folder: str, arguments: list[str]) -> str:
    """Store the config of a run to resume where Hydra finds it, and return its name; refuse what cannot change."""
    run = Run.open(folder, "resume")
    for argument in arguments:
        group, equals, _ = argument.partition("=")
        if argument in ("-m", "--multirun"):
            raise UserError(f"resume={run.path}: leave out {argument}, which starts a sweep; resume continues one run")
        if equals and group.lstrip("+") == "ckpt_path":
            raise UserError(f"resume={run.path}: the run has weights of its own; leave out {argument}, or resume=")
        if equals and is_group(group):
            raise UserError(
                f"resume={run.path}: a resumed run keeps its {group}, so leave out {argument}; "
                "only single values of trainer, callbacks and console can change, as in trainer.max_epochs=1000"
            )
    node: Any = OmegaConf.to_container(saved_config(run))
    logging_of_ours = {"override hydra/hydra_logging": "warnings"}, {"override hydra/job_logging": "terminal"}
    node["defaults"] = ["_self_", *logging_of_ours]
    node["hydra"] = {"job": {"name": "train"}, "run": {"dir": str(run.path.resolve())}, "output_subdir": None}
    ConfigStore.instance().store(SAVED, node)
    return SAVED
