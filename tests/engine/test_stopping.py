"""A signal asks to stop; a second Ctrl-C does not ask, whatever came between."""

import os
import signal

import pytest

from ttd.engine.stopping import StopRequest


@pytest.fixture
def _ctrl_c_as_in_a_terminal():
    """A process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_ctrl_c_as_in_a_terminal")
def test_a_second_ctrl_c_ends_the_run_also_when_another_signal_came_between():
    with StopRequest() as stop:
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
