"""What the node says about itself on /diagnostics: counts, rates, and what went wrong last."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from vil_tracker_core.tracking.online import TrackResult, TrackState
from vil_tracker_ros.pipeline import FrameResult

MOST_KINDS = 32
"""Kinds of faults and of encodings that are told apart; a sender may invent any number."""
OTHERS = "others"
OTHER_CLOCK = 3600.0
"""Seconds of latency beyond which the images' stamps come from another clock, as in a replay."""


def count(counter: Counter[str], kind: str) -> bool:
    """Counts a kind, the ones beyond `MOST_KINDS` as one; whether it is the first of its kind."""
    if kind not in counter and len(counter) >= MOST_KINDS:
        kind = OTHERS
    counter[kind] += 1
    return counter[kind] == 1


class Health:
    """Counts since the last `restart`, and rates since the last `status`. All threads may call."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.restart()

    def restart(self) -> None:
        """Forgets everything, as when the node is activated."""
        with self._lock:
            self._received = self._answered = self._dropped = 0
            self._faults: Counter[str] = Counter()
            self._refused: Counter[str] = Counter()
            self._last_reason = ""
            self._incompatible = ""
            self._failure = ""
            self._stamp_ns: int | None = None
            self._repeated = 0
            self._results: Mapping[str, TrackResult] = {}
            self._period_start: float | None = None
            self._new_period()

    def _new_period(self) -> None:
        self._period_received = self._period_answered = self._period_faults = 0
        self._period_repeated = 0
        self._latencies: list[float] = []
        self._processing: list[float] = []
        self._added: list[float] = []

    def receive(self, stamp_ns: int) -> None:
        """Counts an image that arrived, of whatever quality."""
        with self._lock:
            self._received += 1
            self._period_received += 1
            repeats = stamp_ns == self._stamp_ns
            self._repeated += repeats
            self._period_repeated += repeats
            self._stamp_ns = stamp_ns

    def answer(self, done: FrameResult, latency: float, added: float) -> None:
        """Takes in a frame's results, published ``latency`` seconds after the frame's stamp;
        ``added`` of them the node spent on other things than the work."""
        with self._lock:
            self._dropped = done.dropped
            if done.late:
                return  # a catching-up track's past, not what the camera's stream is like
            self._answered += 1
            self._period_answered += 1
            self._latencies.append(latency)
            self._processing.append(done.processing)
            self._added.append(added)
            self._results = done.results

    def refuse(self, encoding: str, reason: str) -> bool:
        """Counts an image that cannot be used; whether it is the first for this reason."""
        with self._lock:
            count(self._refused, encoding)
        return self.fault(reason)

    def fault(self, reason: str) -> bool:
        """Counts something that went wrong; whether it is the first of its kind."""
        with self._lock:
            self._period_faults += 1
            self._last_reason = reason
            return count(self._faults, reason)

    def fail(self, reason: str) -> None:
        """Keeps why a transition failed, until the next one."""
        with self._lock:
            self._failure = self._last_reason = reason

    def mismatch(self, reason: str) -> None:
        """Keeps why a publisher of images cannot be heard."""
        with self._lock:
            self._incompatible = self._last_reason = reason

    def status(self, name: str, state: str, source: str, now: float) -> DiagnosticStatus:
        """The node's status, and the start of a new period.

        Args:
            name: of the status.
            state: the node's lifecycle state.
            source: where images come from, in a few words.
            now: seconds of a clock that never jumps.
        """
        with self._lock:
            seconds = now - self._period_start if self._period_start is not None else 0.0
            level, message = self._judge(state, source)
            values = self._values(state, source, seconds)
            self._period_start = now
            self._new_period()
        return DiagnosticStatus(
            level=level,
            name=name,
            message=message,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )

    def _judge(self, state: str, source: str) -> tuple[bytes, str]:
        """The worst that there is to say."""
        if self._failure:
            return DiagnosticStatus.ERROR, self._failure
        if state != "active":
            return DiagnosticStatus.OK, state
        if self._period_faults and not self._period_answered:
            return DiagnosticStatus.ERROR, self._last_reason
        if self._period_faults:
            return DiagnosticStatus.WARN, self._last_reason
        if not self._period_received:
            return DiagnosticStatus.WARN, self._incompatible or f"no image from {source}"
        if self._period_repeated:
            return DiagnosticStatus.WARN, "the camera's stamps do not advance: no track gets lost"
        lost = [name for name, r in self._results.items() if r.state is TrackState.LOST]
        if lost:
            return DiagnosticStatus.WARN, f"lost: {', '.join(lost)}"
        if not self._results:
            return DiagnosticStatus.OK, "no track"
        return DiagnosticStatus.OK, f"following {', '.join(self._results)}"

    def _values(self, state: str, source: str, seconds: float) -> dict[str, str]:
        values = {
            "state": state,
            "images from": source,
            "rate (Hz)": f"{self._period_answered / seconds:.1f}" if seconds > 0 else "",
            "latency, mean (ms)": _ms(self._latencies, _mean),
            "latency, max (ms)": _ms(self._latencies, max),
            "processing, mean (ms)": _ms(self._processing, _mean),
            "added by the node, mean (ms)": _ms(self._added, _mean),
            "frames received": str(self._received),
            "frames answered": str(self._answered),
            "frames dropped": str(self._dropped),
            "errors": str(self._faults.total()),
            "stamps repeated": str(self._repeated),
            "last reason": self._last_reason,
        }
        if self._incompatible:
            values["incompatible publisher"] = self._incompatible
        values |= {f"refused {kind}": str(number) for kind, number in self._refused.items()}
        values |= {
            f"track {track_id}": f"{result.state.name} {result.score:.2f} {result.reason}".strip()
            for track_id, result in self._results.items()
        }
        return values


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _ms(seconds: list[float], of: Callable[[list[float]], float]) -> str:
    """A figure of the values in ms; empty where there are none."""
    if not seconds:
        return ""
    if abs(of(seconds)) > OTHER_CLOCK:
        return "the images' stamps are of another clock (use_sim_time?)"
    return f"{1e3 * of(seconds):.1f}"
