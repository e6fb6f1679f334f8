"""A signal asks to stop; a second Ctrl-C does not ask, whatever came between."""

import os
import signal

import pytest

from ttd.engine.stopping import StopRequest


def test_a_second_ctrl_c_ends_the_run_also_when_another_signal_came_between():
    with StopRequest() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
