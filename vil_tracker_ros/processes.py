"""This process's end by a signal, and other Python modules as processes."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


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


@contextmanager
def interruptible() -> Iterator[None]:
    """Raises KeyboardInterrupt where SIGINT or SIGTERM ends what is in it.

    Python is interrupted at once, wherever it is; rclpy's own handlers, which pass the signals on,
    only end what waits. Further signals do nothing, also afterwards: a terminal and a launch file
    may both pass on the same Ctrl-C. Where the interruption comes upon rclpy's C++, that raises an
    error of its own in its place, and somebody may have caught it; it is the end all the same.
    """
    asked = False

    def ask(number: int, frame: object) -> None:
        nonlocal asked
        asked = True
        _on_signals(signal.SIG_IGN)  # Python keeps this to its very end, but no other handler
        raise KeyboardInterrupt

    _on_signals(ask)
    try:
        yield
    except Exception as error:
        if asked:
            raise KeyboardInterrupt from error
        raise
    if asked:
        raise KeyboardInterrupt


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)
