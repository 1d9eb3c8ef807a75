"""This process's end by a signal, and other Python modules as processes."""

from __future__ import annotations

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def process(module: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A Python module as a process of its own, ended on leaving."""
    child = subprocess.Popen([sys.executable, "-m", module, *arguments])
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(timeout=10)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()


class Stop(threading.Event):
    """Set by the first SIGINT or SIGTERM; further ones do nothing.

    Nothing is interrupted. An exception of Python's in the midst of rclpy's C++ becomes another
    there; and rclpy's own handlers take the context away under whatever goes on. So rclpy is to be
    initialised with `SignalHandlerOptions.NO`, and whoever works looks here between two things.

    Args:
        status: with this exit status the process ends by itself where, `LIMIT` seconds after the
            signal, it has not yet ended, deep in something that does not look.

    Attributes:
        wake: called upon the signal, on a thread of its own; for whoever waits without a limit.
    """

    LIMIT = 0.9

    def __init__(self, status: int) -> None:
        super().__init__()
        self.wake: Callable[[], object] = lambda: None
        self._status = status
        reader, writer = os.pipe()
        os.set_blocking(writer, False)
        signal.set_wakeup_fd(writer)  # written to at once, whatever Python does meanwhile
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: None)
        atexit.register(self._ignore)
        threading.Thread(target=self._watch, args=(reader,), name="stop", daemon=True).start()

    @staticmethod
    def _ignore() -> None:
        """From here on Python undoes itself, its handlers of signals too: a signal would end the
        process by its default action, with another exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)

    def _watch(self, reader: int) -> None:
        os.read(reader, 1)
        self.set()
        self.wake()
        time.sleep(self.LIMIT)
        os._exit(self._status)
