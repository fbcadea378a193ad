"""Runs commands and functions in new processes that need not import torch and Lightning, which takes seconds.

A server process imports them once, when the first process starts, and forks. Tests of what is not imported, of signals
during imports, of console scripts, and of programs that start processes (DDP, joblib, TensorBoard) use `subprocess`.
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


calls = {}  # the processes that `fork` has started, by id


class Process:
    """A started process, with those methods of `subprocess.Popen` that tests use."""

    def __init__(self, process, pipes):
        self.process, self.pid = process, process.pid
        self.said = [""] * len(pipes)
        self.readers = [threading.Thread(target=self._read, args=given, daemon=True) for given in enumerate(pipes)]
        for reader in self.readers:
            reader.start()
        atexit.register(self.kill)  # else Python would wait for processes that a failed test has left

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
        """Return standard output and error, after this process and all that share them have ended."""
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
    """Start a process from the server."""
    with mock.patch.dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))):  # for its imports
        process.start()


def fork(function, *arguments):
    """Call a function in a new process, whose exit code is what the function returns; return the id of the process.

    The process is a fork of the server, since a fork of a process that has used polars waits for its threads forever.
    So it lacks the patches of a test.
    """
    process = CONTEXT.Process(target=call, args=(cloudpickle.dumps((function, arguments)),))
    begin(process)
    calls[process.pid] = process
    return process.pid


def call(pickled):
    """Call the function, and end the process at once."""
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
    """Return whether a process that `fork` has started has ended."""
    return calls[pid].exitcode is not None


def end(pid):
    """Wait for a process that `fork` has started; return its exit code, or minus the signal that killed it."""
    calls[pid].join()
    return calls.pop(pid).exitcode


def run(entry, arguments, environment, folder, ends):
    """Become a command: replace its output files, environment and working directory, and run it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    multiprocessing.set_start_method(None, force=True)  # the process itself must not use the server
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
