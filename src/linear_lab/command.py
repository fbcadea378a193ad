"""How a command begins: Ctrl-C and its like end it without a traceback, while Hydra is imported too."""

from collections.abc import Callable, Mapping
from typing import Any

from linear_lab.terminal.signals import EndOnSignal


def entry(name: str, renamed: Mapping[str, str] | None = None) -> Callable[[Callable[[Any], Any]], Callable[[], None]]:
    """Make a command of a task; see `cli.entry`."""

    def decorate(task: Callable[[Any], Any]) -> Callable[[], None]:
        def main() -> None:
            with EndOnSignal():
                from linear_lab import cli

                cli.entry(name, renamed)(task)()

        return main

    return decorate
