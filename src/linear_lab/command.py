"""How a command begins: Ctrl-C and its like end it without a traceback, while Hydra is imported too."""

from collections.abc import Callable, Mapping
from typing import Any

from linear_lab.terminal.output import lasting_output
from linear_lab.terminal.signals import EndOnSignal


def entry(name: str, renamed: Mapping[str, str] | None = None) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make a command of a task: a function of the config that conf/<name>.yaml and the command line compose.

    Args:
        name: of the command.
        renamed: keys that Hydra would take for config groups, and the keys of the config that they stand for.
    """

    def decorate(task: Callable[[Any], Any]) -> Callable[[], None]:
        @lasting_output()
        def main() -> None:
            with EndOnSignal():
                from linear_lab import cli

                cli.run(task, name, renamed or {})

        return main

    return decorate
