"""vil_tracker_ros.diagnostics: counts, rates and the judgement, without a node."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from diagnostic_msgs.msg import DiagnosticStatus

from vil_tracker_core.geometry import Box
from vil_tracker_core.tracking.online import TrackResult, TrackState
from vil_tracker_ros.diagnostics import MOST_KINDS, OTHERS, Health, count
from vil_tracker_ros.pipeline import Frame, FrameResult


def done(
    state: TrackState | None = TrackState.TRACKING, dropped: int = 0, late: bool = False
) -> FrameResult:
    results = {}
    if state is not None:
        box = Box(1, 2, 3, 4)
        results["car"] = TrackResult(box, 0.5, np.eye(4), state, 0.0, "hidden by a tree")
    return FrameResult(Frame(1, None, (8, 8), 1), None, results, {}, 0.010, dropped, late)


class Watch:
    """A health, and a look at it every two seconds."""

    def __init__(self) -> None:
        self.health = Health()
        self.now = 100.0

    def look(self, state: str = "active") -> tuple[bytes, str, dict[str, str]]:
        self.now += 2.0
        status = self.health.status("tracker", state, "/camera (publishers: 1)", self.now)
        return status.level, status.message, {item.key: item.value for item in status.values}

    def frame(self, stamp: int, **result: object) -> None:
        self.health.receive(stamp)
        self.health.answer(done(**result), 0.030, 0.002)  # type: ignore[arg-type]


@pytest.fixture
def watch() -> Watch:
    made = Watch()
    made.look()
    return made


def test_rates_and_times_are_those_of_the_period(watch: Watch) -> None:
    for number in range(60):
        watch.frame(number, dropped=7)
    level, message, values = watch.look()
    assert (level, message) == (DiagnosticStatus.OK, "following car")
    assert values["rate (Hz)"] == "30.0"
    assert values["latency, mean (ms)"] == values["latency, max (ms)"] == "30.0"
    assert values["processing, mean (ms)"] == "10.0"
    assert values["added by the node, mean (ms)"] == "2.0"
    assert (values["frames received"], values["frames answered"]) == ("60", "60")
    assert values["frames dropped"] == "7"
    assert values["track car"] == "TRACKING 0.50 hidden by a tree"
    watch.frame(61)
    assert watch.look()[2]["rate (Hz)"] == "0.5"


def test_the_past_of_a_track_that_catches_up_is_no_rate_and_no_latency(watch: Watch) -> None:
    watch.frame(1)
    watch.health.answer(done(late=True), 5.0, 4.0)
    values = watch.look()[2]
    assert (values["rate (Hz)"], values["latency, max (ms)"]) == ("0.5", "30.0")


def test_stamps_of_another_clock_are_no_latency(watch: Watch) -> None:
    watch.health.receive(1)
    watch.health.answer(done(), 9e7, 0.0)
    assert "another clock" in watch.look()[2]["latency, mean (ms)"]


def test_silence_names_the_topic(watch: Watch) -> None:
    level, message, values = watch.look()
    assert (level, message) == (DiagnosticStatus.WARN, "no image from /camera (publishers: 1)")
    assert values["latency, mean (ms)"] == ""


def test_an_incompatible_publisher_explains_the_silence(watch: Watch) -> None:
    watch.health.mismatch("its RELIABILITY does not fit")
    level, message, values = watch.look()
    assert (level, message) == (DiagnosticStatus.WARN, "its RELIABILITY does not fit")
    assert values["incompatible publisher"] == values["last reason"] == message


def test_a_lost_track_warns(watch: Watch) -> None:
    watch.frame(1, state=TrackState.LOST)
    assert watch.look()[:2] == (DiagnosticStatus.WARN, "lost: car")


def test_no_track_is_fine(watch: Watch) -> None:
    watch.frame(1, state=None)
    assert watch.look()[:2] == (DiagnosticStatus.OK, "no track")


def test_refused_images_are_counted_by_encoding_and_said_once(watch: Watch) -> None:
    assert watch.health.refuse("32FC1", "32FC1 is not supported")
    assert not watch.health.refuse("32FC1", "32FC1 is not supported")
    watch.health.receive(1)
    level, message, values = watch.look()
    assert (level, message) == (DiagnosticStatus.ERROR, "32FC1 is not supported")
    assert (values["refused 32FC1"], values["errors"]) == ("2", "2")
    watch.frame(2)
    watch.health.refuse("32FC1", "32FC1 is not supported")
    assert watch.look()[0] == DiagnosticStatus.WARN  # others are answered
    watch.frame(3)
    assert watch.look()[0] == DiagnosticStatus.OK


def test_stamps_that_stand_still_warn(watch: Watch) -> None:
    for _ in range(3):
        watch.frame(5)
    level, message, values = watch.look()
    assert level == DiagnosticStatus.WARN
    assert "stamps do not advance" in message
    assert values["stamps repeated"] == "2"


def test_a_failed_transition_is_an_error_until_the_next(watch: Watch) -> None:
    watch.health.fail("not configured: no such file")
    assert watch.look("unconfigured")[:2] == (
        DiagnosticStatus.ERROR,
        "not configured: no such file",
    )
    watch.health.restart()
    assert watch.look("inactive")[:2] == (DiagnosticStatus.OK, "inactive")


def test_kinds_are_bounded() -> None:
    counter: Counter[str] = Counter()
    assert all(count(counter, str(number)) for number in range(MOST_KINDS))
    assert count(counter, "one more")
    assert not count(counter, "and another")
    assert counter[OTHERS] == 2
    assert len(counter) == MOST_KINDS + 1
