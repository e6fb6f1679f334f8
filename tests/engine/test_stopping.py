"""A signal asks to stop; a second Ctrl-C does not ask, whatever came between."""

import os
import signal
import time

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


def test_the_clock_asks_to_stop_as_a_signal_does(monkeypatch):
    for seconds, asked in ((-1, True), (60, False)):
        monkeypatch.setenv("TTD_STOP_AT", str(int(time.time() + seconds)))
        with StopRequest() as stop:
            assert stop.requested == asked
