"""Replacing ``latest`` on a command line, as in ``run=latest``, by the newest folder."""

from pathlib import Path

from linear_lab import UserError
from linear_lab.runs.folder import LAST, RESULT
from linear_lab.sweep import SETTINGS
from linear_lab.terminal.layout import flag, in_quotes, screen

RECORDS = {"run": ("runs", LAST), "resume": ("runs", RESULT), "folder": ("sweeps", SETTINGS)}  # the file to compare


def with_latest(arguments: list[str], root: str) -> list[str]:
    """Replace ``latest`` by the folder below ``root`` whose file in `RECORDS` is the newest, and print its path."""
    replaced = []
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in RECORDS and value in ("latest", "'latest'"):
            kind, name = RECORDS[key]
            parent, typed = Path(root) / kind, "sweep" if key == "folder" else key
            records = [path for path in parent.expanduser().glob(f"[!.]*/{name}") if path.is_file()]
            if not records:
                raise UserError(f"{typed}=latest: no folder in {parent} has a {name}; train first, or name a folder")
            newest = max(records, key=lambda path: (path.stat().st_mtime_ns, path))
            folder = newest.parents[name.count("/")]
            argument = f"{key}={in_quotes(str(folder))}"
            if flag(arguments, "--cfg", "-c") is None:  # --cfg prints only YAML
                screen().print(f"{typed}=latest is {folder}", soft_wrap=True)
        replaced.append(argument)
    if replaced != arguments:  # it was needed only to find the folder
        replaced = [argument for argument in replaced if not argument.startswith("output_root=")]
    return replaced
