"""Many tracks in one batch: each what it would be alone, whoever comes and goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.tracking.multi import MultiTracker
from vil_tracker_core.tracking.network import Network, TorchNetwork
from vil_tracker_core.tracking.online import OnlineTracker, TrackerConfig, TrackResult, TrackState
from vil_tracker_core.weights import Weights

BOXES = {
    "car": Box(20, 20, 24, 20),
    "boat": Box(70, 50, 30, 30),
    "dog": Box(110, 12, 20, 26),
    "kite": Box(55, 85, 18, 14),
}
DT = 0.1
BELIEVING = TrackerConfig(confident=0.0, doubtful=0.0)  # measures every frame


def stamp(index: int) -> float:
    return index * DT


def assert_same(a: TrackResult, b: TrackResult) -> None:
    np.testing.assert_allclose(a.box, b.box, rtol=0, atol=1e-4)
    np.testing.assert_allclose(a.covariance, b.covariance, rtol=1e-4, atol=1e-4)
    assert a.score == pytest.approx(b.score, abs=1e-5)
    assert (a.state, a.stamp) == (b.state, b.stamp)


def alone(
    network: Network, frames: list[Image], name: str, begin: int, end: int, config: TrackerConfig
) -> list[TrackResult]:
    """Results of one track of its own on frames begin + 1 .. end."""
    tracker = OnlineTracker(network, config)
    tracker.init(frames[begin], BOXES[name], stamp(begin))
    return [tracker.update(frames[k], stamp(k)) for k in range(begin + 1, end + 1)]


@pytest.mark.parametrize(
    ("changes", "config"),
    [
        ({}, TrackerConfig()),
        ({}, BELIEVING),
        ({"scan": "joint"}, BELIEVING),
        ({"memory": "carry"}, BELIEVING),
        ({"film": "pooled"}, BELIEVING),
        ({}, TrackerConfig(confident=1.0, doubtful=1.0, patience=0.2)),
    ],
    ids=["default", "believing", "joint", "carry", "pooled", "lost"],
)
def test_batched_equals_single(
    make_weights: Callable[..., Weights],
    frames: list[Image],
    changes: dict[str, str],
    config: TrackerConfig,
) -> None:
    network = TorchNetwork(make_weights(**changes))
    last = len(frames) - 1
    wanted = {name: alone(network, frames, name, 0, last, config) for name in BOXES}
    many = MultiTracker(network, config)
    for name, box in BOXES.items():
        assert many.add(name, frames[0], box, 0.0).box == box
    for k in range(1, last + 1):
        results = many.update(frames[k], stamp(k))
        assert list(results) == list(BOXES)
        for name, result in results.items():
            assert_same(result, wanted[name][k - 1])


def test_second_templates_may_come_at_different_frames(
    network: Network, frames: list[Image]
) -> None:
    """A track that was added later has one template while the others have two."""
    config = TrackerConfig(confident=0.0, doubtful=0.0, template_every=2, template_score=0.0)
    last = len(frames) - 1
    many = MultiTracker(network, config)
    many.add("car", frames[0], BOXES["car"], stamp(0))
    for k in (1, 2, 3):
        many.update(frames[k], stamp(k))
    many.add("boat", frames[3], BOXES["boat"], stamp(3))
    wanted = {
        "car": alone(network, frames, "car", 0, last, config)[3:],
        "boat": alone(network, frames, "boat", 3, last, config),
    }
    for k in range(4, last + 1):
        for name, result in many.update(frames[k], stamp(k)).items():
            assert_same(result, wanted[name][k - 4])


lives = st.dictionaries(
    st.sampled_from(list(BOXES)),
    st.tuples(st.integers(0, 6), st.integers(1, 7)).map(lambda t: (t[0], min(t[0] + t[1], 7))),
    min_size=1,
)


@given(lives=lives)
@settings(max_examples=12)
def test_who_comes_and_goes_never_changes_the_others(
    network: Network, frames: list[Image], lives: dict[str, tuple[int, int]]
) -> None:
    """Each track begins and ends at a frame of its own."""
    wanted = {
        name: alone(network, frames, name, begin, end, BELIEVING)
        for name, (begin, end) in lives.items()
    }
    many = MultiTracker(network, BELIEVING)
    for k, frame in enumerate(frames):
        results = many.update(frame, stamp(k))
        assert set(results) == set(many.ids)
        for name, result in results.items():
            assert_same(result, wanted[name][k - lives[name][0] - 1])
        for name, (begin, end) in lives.items():
            if k == end:
                many.remove(name)
            if k == begin:
                many.add(name, frame, BOXES[name], stamp(k))
    assert many.ids == []


def test_no_tracks_no_results(network: Network, frames: list[Image]) -> None:
    assert MultiTracker(network).update(frames[0], 0.0) == {}


def test_ids(network: Network, frames: list[Image]) -> None:
    many = MultiTracker(network)
    for name in ("car", "boat"):
        many.add(name, frames[0], BOXES[name], 0.0)
    assert many.ids == ["car", "boat"]
    with pytest.raises(ValueError, match="'car' is in use"):
        many.add("car", frames[0], BOXES["dog"], 0.0)
    many.remove("car")
    assert many.ids == ["boat"]
    with pytest.raises(KeyError):
        many.remove("car")
    many.add("car", frames[0], BOXES["car"], 0.0)
    assert many.ids == ["boat", "car"]


def test_a_refused_box_adds_nothing(network: Network, frames: list[Image]) -> None:
    many = MultiTracker(network)
    many.add("car", frames[0], BOXES["car"], 0.0)
    with pytest.raises(ValueError, match="not finite"):
        many.add("boat", frames[0], Box(math.nan, 0, 10, 10), 0.0)
    assert many.ids == ["car"]
    assert list(many.update(frames[1], DT)) == ["car"]


def test_a_bad_stamp_moves_no_track(network: Network, frames: list[Image]) -> None:
    many, untouched = MultiTracker(network), MultiTracker(network)
    for tracker in (many, untouched):
        for name in ("car", "boat"):
            tracker.add(name, frames[0], BOXES[name], 0.0)
    with pytest.raises(ValueError, match="stamp"):
        many.update(frames[1], math.nan)
    wanted = untouched.update(frames[1], DT)
    for name, result in many.update(frames[1], DT).items():
        assert_same(result, wanted[name])


def test_adopted_tracks_go_on_as_they_were(network: Network, frames: list[Image]) -> None:
    """A track that caught up on old frames joins the live ones."""
    live, late = MultiTracker(network, BELIEVING), MultiTracker(network, BELIEVING)
    live.add("car", frames[0], BOXES["car"], 0.0)
    late.add("boat", frames[0], BOXES["boat"], 0.0)
    for k in (1, 2):
        live.update(frames[k], stamp(k))
        late.update(frames[k], stamp(k))
    live.adopt(late)
    assert live.ids == ["car", "boat"]
    results = live.update(frames[3], stamp(3))
    for name, result in results.items():
        assert_same(result, alone(network, frames, name, 0, 3, BELIEVING)[-1])

    other = MultiTracker(network, BELIEVING)
    other.add("car", frames[0], BOXES["dog"], 0.0)
    with pytest.raises(ValueError, match="ids in use: car"):
        live.adopt(other)
    assert live.ids == ["car", "boat"]


def test_thresholds_change_for_running_tracks_and_for_those_to_come(
    network: Network, frames: list[Image]
) -> None:
    """A net of random weights: nothing is confident below a threshold of 1, all is above 0."""
    many = MultiTracker(network, BELIEVING)
    many.add("car", frames[0], BOXES["car"], 0.0)
    assert many.update(frames[1], stamp(1))["car"].state is TrackState.TRACKING
    many.configure(replace(BELIEVING, confident=1.0))
    many.add("boat", frames[1], BOXES["boat"], stamp(1))
    states = {name: one.state for name, one in many.update(frames[2], stamp(2)).items()}
    assert states == {"car": TrackState.UNCERTAIN, "boat": TrackState.UNCERTAIN}
