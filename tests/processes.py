"""Commands and calls in processes of their own that need not import torch and Lightning, which takes seconds each time.

A server imports them once, when the first process is asked for, and forks. Tests of what is not imported, of signals
while it is, of console scripts, and of what starts processes itself (DDP, joblib, TensorBoard) use `subprocess`.
"""

import atexit
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
import time
import traceback
from pathlib import Path
from unittest import mock

from joblib.externals import cloudpickle

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["preloaded", "processes"])


calls = {}  # the processes of `fork`, by their ids


class Process:
    """A process that was started, with the part of `subprocess.Popen` that tests use."""

    def __init__(self, process, pipes):
        self.process, self.pid = process, process.pid
        self.said = [""] * len(pipes)
        self.readers = [threading.Thread(target=self._read, args=given, daemon=True) for given in enumerate(pipes)]
        for reader in self.readers:
            reader.start()
        atexit.register(self.kill)  # else Python would wait for what a failed test has left

    def _read(self, number, pipe):
        with pipe, open(pipe.fileno(), closefd=False) as file:
            self.said[number] = file.read()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, signum):
        if self.poll() is None:
            os.kill(self.pid, signum)

    def kill(self):
        self.send_signal(signal.SIGKILL)

    def communicate(self, timeout=None):
        """Standard output and error, once this process and all that share them have ended."""
        end = None if timeout is None else time.monotonic() + timeout
        for waited in (*self.readers, self.process):
            waited.join(None if end is None else max(0, end - time.monotonic()))
            if waited.is_alive():
                raise subprocess.TimeoutExpired(self.process.name, timeout)
        return tuple(self.said)


def start(entry, *arguments, env=None, cwd=None):
    """Start ``python -m <entry> <arguments>``, without -m where the entry is a path; env is added to ours."""
    environment, arguments = os.environ | (env or {}), [*map(str, arguments)]
    pipes, ends = zip(*(CONTEXT.Pipe(duplex=False) for _ in range(2)), strict=True)
    given = (entry, arguments, environment, cwd or os.getcwd(), ends)  # noqa: PTH109 - it may be a text
    process = CONTEXT.Process(target=run, args=given, name=f"{entry} {' '.join(arguments)}")
    begin(process)
    for pipe in ends:
        pipe.close()
    return Process(process, pipes)


def begin(process):
    """Have the server fork."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):  # for the server to import
        process.start()


def fork(function, *arguments):
    """Call in a process of its own, which ends with what is returned; its id.

    It is not a fork of this process: a child of one that has used polars would wait for ever for polars' threads. So
    nothing that was patched here is patched there.
    """
    process = CONTEXT.Process(target=call, args=(cloudpickle.dumps((function, arguments)),))
    begin(process)
    calls[process.pid] = process
    return process.pid


def call(pickled):
    """Call, and end at once."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)
    code = 99
    try:
        function, arguments = cloudpickle.loads(pickled)
        code = function(*arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def has_ended(pid):
    """Tell whether a process of `fork` has ended."""
    return calls[pid].exitcode is not None


def end(pid):
    """Wait for a process of `fork`; its exit code, or less the signal that killed it."""
    calls[pid].join()
    return calls.pop(pid).exitcode


def run(entry, arguments, environment, folder, ends):
    """Be that command, from here on."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # no other process is to come of the server
    for number, end in enumerate(ends, 1):
        os.dup2(end.fileno(), number)
        end.close()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = [str(entry), *arguments]
    if isinstance(entry, Path):
        sys.path.insert(0, str(entry.parent if entry.is_file() else entry))
        runpy.run_path(str(entry), run_name="__main__")
    else:
        runpy.run_module(entry, run_name="__main__", alter_sys=True)
