"""The node's lifecycle: what exists in which state, and that nothing is left behind."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from ground import Ground, request, ros_arguments, together
from rclpy.lifecycle import TransitionCallbackReturn

from vil_tracker_ros.srv import StopTrack

pytestmark = pytest.mark.usefixtures("domain")
DONE = TransitionCallbackReturn.SUCCESS


@pytest.fixture
def pair(domain: int, tiny: str) -> Iterator[tuple[Ground, Any]]:
    with together(tiny, "backend:=torch") as both:
        yield both


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "tracking"]


def threads() -> int:
    """Of this process, with the kernel's view of it: a computation's helpers are not Python's. They
    end shortly after the thread that they helped, which nobody can wait for."""
    return len(list(Path("/proc/self/task").iterdir()))


def memory() -> float:
    """Resident memory of this process, MB."""
    gc.collect()
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def test_subscription_and_worker_exist_only_while_active(pair: tuple[Ground, Any]) -> None:
    ground, tracker = pair

    def listening() -> bool:
        return tracker.count_subscribers("image") > 0

    assert tracker.lifecycle == "unconfigured"
    refusal = ground.call(ground.init, request())
    assert not refusal.success
    assert "not active" in refusal.message
    assert tracker.trigger_configure() is DONE
    assert (tracker.lifecycle, workers(), listening()) == ("inactive", [], False)
    assert "not active" in ground.call(ground.stop, StopTrack.Request()).message
    assert tracker.trigger_activate() is DONE
    assert (tracker.lifecycle, workers()) == ("active", ["tracking"])
    ground.until(listening, "the subscription")
    ground.send_first(0)
    assert ground.call(ground.init, request()).success
    assert tracker.trigger_deactivate() is DONE
    assert (tracker.lifecycle, workers()) == ("inactive", [])
    ground.until(lambda: not listening(), "the subscription to go")
    # active again, it knows nothing of the time before
    assert tracker.trigger_activate() is DONE
    assert "no image" in ground.call(ground.init, request()).message
    assert tracker.trigger_shutdown() is DONE
    assert workers() == []


def test_rounds_leave_neither_memory_nor_threads_behind(pair: tuple[Ground, Any]) -> None:
    ground, tracker = pair

    def one_round(number: int) -> None:
        assert tracker.trigger_configure() is DONE
        assert tracker.trigger_activate() is DONE
        ground.send_first(2 * number)
        assert ground.call(ground.init, request()).success
        ground.send_and_wait(2 * number + 1)
        assert tracker.trigger_deactivate() is DONE
        assert tracker.trigger_cleanup() is DONE

    for number in range(3):  # caches and pools fill up
        one_round(number)
    least, before = threads(), memory()
    for number in range(3, 13):
        one_round(number)
    ground.until(lambda: threads() <= least, "the rounds' threads to end")
    assert memory() - before < 10


def test_onnx_sessions_are_given_back(domain: int, tiny: str) -> None:
    with together(tiny, "backend:=onnxruntime", "threads:=2") as (ground, tracker):

        def one_round() -> None:
            assert tracker.start()
            assert tracker.trigger_deactivate() is DONE
            assert tracker.trigger_cleanup() is DONE

        for _ in range(2):
            one_round()
        least, before = threads(), memory()
        for _ in range(10):
            one_round()
        ground.until(lambda: threads() <= least, "the rounds' threads to end")
        assert memory() - before < 20


def test_a_failed_configuration_says_why_and_can_be_mended(domain: int, tiny: str) -> None:
    with together("weights:=nowhere.safetensors", "backend:=torch") as (ground, tracker):
        assert tracker.trigger_configure() is TransitionCallbackReturn.FAILURE
        assert tracker.lifecycle == "unconfigured"
        status = ground.status(lambda values: values["level"] == "2")
        assert "not configured: 'nowhere.safetensors' is neither" in status["message"]
        path = tiny.removeprefix("weights:=")
        change = rclpy.parameter.Parameter("weights", value=path)
        assert tracker.set_parameters([change])[0].successful
        assert tracker.trigger_configure() is DONE
        assert ground.status(lambda values: values["level"] == "0")["message"] == "inactive"


def test_an_error_gives_everything_back_and_the_node_can_start_again(tiny: str) -> None:
    from vil_tracker_ros.tracker_node import TrackerNode

    class Unlucky(TrackerNode):
        lucky = False

        def _listen(self) -> None:
            super()._listen()
            if not self.lucky:
                raise RuntimeError("the camera's driver is gone")

    rclpy.init(args=ros_arguments(tiny, "backend:=torch"))
    tracker = Unlucky()
    try:
        assert tracker.trigger_configure() is DONE
        assert tracker.trigger_activate() is TransitionCallbackReturn.ERROR
        assert (tracker.lifecycle, workers()) == ("unconfigured", [])
        tracker.lucky = True
        assert tracker.start()
        assert (tracker.lifecycle, workers()) == ("active", ["tracking"])
    finally:
        tracker.stop_working()
        tracker.destroy_node()
        rclpy.shutdown()
