"""Signals that end a command, before and after training. Imports little: it is the first that a command imports."""

import errno
import os
import signal
import sys
import termios
import threading
from types import FrameType
from typing import Any, Self

from linear_lab import compat

ENDING: dict[signal.Signals, Any] = {  # signals that end a command, and the handlers that Python has for them
    signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL, signal.SIGHUP: signal.SIG_DFL
}  # fmt: skip


class EndOnSignal:
    """Ends a block at Ctrl-C with exit code 130, also where a library loses the KeyboardInterrupt.

    SIGTERM and SIGHUP, which a dropped connection sends, are a Ctrl-C with exit codes 143 and 129. Python drops an
    exception that is raised while it cleans up after an import, and OmegaConf breaks at it. So the first signal inside
    of OmegaConf is only noted, and `raise_if_interrupted` raises what was noted or lost. Outside the main thread, and
    where a signal has another handler already, nothing is changed.
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
    """Raise the KeyboardInterrupt that `EndOnSignal` has noted or a library has lost; called before long work."""
    handlers = [signal.getsignal(signum) for signum in ENDING]
    if any(isinstance(handler, EndOnSignal) and handler.signum for handler in handlers):
        raise KeyboardInterrupt


def present_handlers() -> dict[signal.Signals, Any]:
    """Return the handlers of the signals that end a command; without SIGHUP where nohup has it ignored."""
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    return {signum: signal.getsignal(signum) for signum in ENDING.keys() - ignored}


def hang_up() -> None:
    """After SIGHUP, let nothing disturb what is still to be saved: neither a second one nor the lost terminal.

    The kernel and the shell send one each, and to write to a terminal that has hung up raises an OSError.
    """
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    for file in (1, 2):
        try:
            termios.tcgetattr(file)
        except termios.error as error:
            if error.args[0] == errno.EIO:
                os.dup2(os.open(os.devnull, os.O_WRONLY), file)
