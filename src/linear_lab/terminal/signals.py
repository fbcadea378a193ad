"""Signals that end a command before and after training. Imports little, as a command imports it first."""

import errno
import os
import signal
import sys
import termios
import threading
from types import FrameType
from typing import Any, Self

from linear_lab import compat

ENDING: dict[signal.Signals, Any] = {  # signals that end a command, and Python's handlers for them
    signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL
}  # fmt: skip


class EndOnSignal:
    """Ends a block at Ctrl-C with exit code 130, even if a library loses the KeyboardInterrupt.

    SIGTERM, and SIGHUP of a dropped connection, do the same with exit codes 143 and 129. Python loses an exception that
    is raised while it cleans up after an import, and OmegaConf fails in other ways. So the first signal in OmegaConf is
    only remembered, and `raise_if_interrupted` raises it later, like a lost one. Nothing changes outside of the main
    thread, and for a signal that already has another handler.
    """

    def __init__(self) -> None:
        self.signum: int | None = None

    def __enter__(self) -> Self:
        main = threading.current_thread() is threading.main_thread()
        self.installed = [signum for signum, handler in ENDING.items() if main and signal.getsignal(signum) == handler]
        for signum in self.installed:
            signal.signal(signum, self)
        return self

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGHUP:
            hang_up()
        first, self.signum = self.signum is None, self.signum or signum
        if not (first and compat.runs_omegaconf(frame)):
            raise KeyboardInterrupt

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> None:
        for signum in self.installed:
            signal.signal(signum, ENDING[signum])
        if self.signum or kind is KeyboardInterrupt:
            if not (isinstance(error, SystemExit) and error.code in [128 + signum for signum in ENDING]):
                print("interrupted", file=sys.stderr)
            raise SystemExit(128 + (self.signum or signal.SIGINT)) from None


def raise_if_interrupted() -> None:
    """Raise a KeyboardInterrupt that `EndOnSignal` remembered or a library lost; called before long work."""
    handlers = [signal.getsignal(signum) for signum in ENDING]
    if any(isinstance(handler, EndOnSignal) and handler.signum for handler in handlers):
        raise KeyboardInterrupt


def present_handlers() -> dict[signal.Signals, Any]:
    """Return the handlers of the signals that end a command, without SIGHUP if nohup ignores it."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {signum: signal.getsignal(signum) for signum in ENDING.keys() - ignored}


def hang_up() -> None:
    """After SIGHUP, ignore the shell's second one, and write no more to the lost terminal: that raises an OSError."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for file in (1, 2):
        try:
            termios.tcgetattr(file)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)
