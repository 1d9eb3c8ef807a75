"""vil_tracker_ros.processes: how a signal ends this process, and how a child ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import suppress

import pytest

from vil_tracker_ros.processes import interruptible, process

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """pytest has its own handlers back afterwards."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_once(number: signal.Signals) -> None:
    reached = []

    @interruptible()
    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            reached.append("the end of the block")
        reached.append("what comes after it")

    with pytest.raises(KeyboardInterrupt):
        work()
    assert [signal.getsignal(each) for each in SIGNALS] == [signal.SIG_IGN] * 2
    assert reached == ["the end of the block"]


def test_an_interruption_that_became_another_error_is_one() -> None:
    @interruptible()
    def work() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise RuntimeError("cannot be converted") from None

    with pytest.raises(KeyboardInterrupt):
        work()


def test_an_interruption_that_somebody_caught_is_one() -> None:
    @interruptible()
    def work() -> None:
        with suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        work()


def test_other_errors_and_none_stay_what_they_are() -> None:
    with pytest.raises(ValueError, match="mine"), interruptible():
        raise ValueError("mine")
    with interruptible():
        pass


def test_a_child_is_ended_on_leaving() -> None:
    with process("timeit", "-n", "1", "import time; time.sleep(600)") as child:
        assert child.poll() is None
    assert child.returncode == -signal.SIGTERM
