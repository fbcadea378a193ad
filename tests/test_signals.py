"""What a signal does to a process that has lost its terminal."""

import errno
import os
import signal

import pytest
from processes import end, fork

from linear_lab.terminal import signals


def lose_terminal():
    """Write to a terminal that has hung up, before and after `hang_up`; 0 if all is as it should be."""
    terminal, ours = os.openpty()
    os.dup2(ours, 1)
    os.close(ours)
    os.close(terminal)
    with pytest.raises(OSError, match=os.strerror(errno.EIO)):
        os.write(1, b"lost")
    signals.hang_up()
    os.write(1, b"nowhere")
    os.kill(os.getpid(), signal.SIGHUP)  # the kernel and the shell send one each
    return 0


def test_a_terminal_that_has_hung_up_disturbs_nothing():
    assert end(fork(lose_terminal)) == 0
