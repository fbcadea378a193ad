"""How a command begins: from its first import on, Ctrl-C ends it without a traceback."""

from collections.abc import Callable, Mapping
from typing import Any

from linear_lab.terminal.output import lasting_output
from linear_lab.terminal.signals import EndOnSignal


def entry(name: str, renamed: Mapping[str, str] | None = None) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make a command from a function of the config, which conf/<name>.yaml and the command line compose.

    ``renamed`` maps typed keys to keys of the config, if Hydra would take the typed ones for config groups.
    """

    def decorate(task: Callable[[Any], Any]) -> Callable[[], None]:
        @lasting_output()
        def main() -> None:
            with EndOnSignal():
                from linear_lab import cli

                cli.run(task, name, renamed or {})

        return main

    return decorate
