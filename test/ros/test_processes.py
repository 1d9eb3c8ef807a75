"""vil_tracker_ros.processes: how a signal ends this process, and how a child ends."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from vil_tracker_ros.processes import process

SIGNALS = (signal.SIGINT, signal.SIGTERM)
BEGIN = """
import sys, threading, time
from vil_tracker_ros.processes import Stop
stop = Stop(status=7)
"""


def stopped(script: str, *numbers: signal.Signals) -> tuple[int, str, str]:
    """A script's exit status, output and errors, where it gets signals once it says that it is
    ready."""
    child = subprocess.Popen(
        [sys.executable, "-c", BEGIN + script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    for number in numbers:
        child.send_signal(number)
    out, err = child.communicate(timeout=60)
    return child.returncode, out, err


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_told_and_interrupts_nothing(number: signal.Signals) -> None:
    script = """
print("ready", flush=True)
stop.wait()
print("told")
sys.exit(3)
"""
    assert stopped(script, number, *SIGNALS) == (3, "told\n", "")


def test_signals_without_end_change_nothing() -> None:
    """The last ones arrive while Python takes itself down, and its handlers with it."""
    script = BEGIN + 'print("ready", flush=True)\nstop.wait()\nsys.exit(3)'
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        while child.poll() is None:
            child.send_signal(signal.SIGTERM)
    assert child.returncode == 3


def test_whoever_waits_for_something_else_is_woken() -> None:
    script = """
waited_for = threading.Event()
stop.wake = waited_for.set
print("ready", flush=True)
waited_for.wait()
print("woken" if stop.is_set() else "woken too soon")
sys.exit(3)
"""
    assert stopped(script, signal.SIGINT) == (3, "woken\n", "")


@pytest.mark.parametrize("work", ["while True: pass", "time.sleep(600)"])
def test_work_that_does_not_look_is_ended(work: str) -> None:
    script = f"""
print("ready", flush=True)
{work}
"""
    assert stopped(script, signal.SIGTERM) == (7, "", "")


def test_without_a_signal_nothing_happens() -> None:
    script = """
print("ready", flush=True)
sys.exit(1 if stop.wait(2 * Stop.LIMIT) else 0)
"""
    assert stopped(script) == (0, "", "")


def test_a_child_is_ended_on_leaving() -> None:
    with process("timeit", "-n", "1", "import time; time.sleep(600)") as child:
        assert child.poll() is None
    assert child.returncode == -signal.SIGTERM
