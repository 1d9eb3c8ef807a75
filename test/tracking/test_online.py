"""One track's state machine, told frame by frame what was found, and the tracker on a real net."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from copy import copy as copied
from dataclasses import FrozenInstanceError, dataclass, field, replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.evaluation.bags import open_bag
from vil_tracker_core.geometry import Box, Crop, Image, clip_to_frame, crop_motion, iou
from vil_tracker_core.model.tracker import Memory
from vil_tracker_core.tracking.kalman import KalmanConfig
from vil_tracker_core.tracking.network import Found, Network, TorchNetwork, open_network
from vil_tracker_core.tracking.online import (
    Look,
    OnlineTracker,
    Track,
    TrackerConfig,
    TrackResult,
    TrackState,
)
from vil_tracker_core.tracking.recognition import Recognition
from vil_tracker_core.tracking.uncertainty import LONGEST
from vil_tracker_core.weights import Calibration, Weights

REAL = Path(__file__).parents[2] / "clips" / "real"
TRACKING, UNCERTAIN, LOST = TrackState.TRACKING, TrackState.UNCERTAIN, TrackState.LOST
DT = 0.125  # exact in binary
BOX = Box(300, 200, 40, 30)
FRAME = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
# scores count as the test says them, whatever the features, and a high one is more than a confident
ANY = TrackerConfig(alike=0.0, elsewhere=0.7)
SEEN, UNSURE, UNSEEN = 0.9, 0.35, 0.05  # scores beyond and between the two thresholds


def said(unit: np.ndarray, variance: np.ndarray, score: float) -> Found:
    """A net's word, with features that tell nothing."""
    return Found(unit, variance, score, np.zeros((4, 4, 32), np.float32))


@dataclass
class Scripted:
    """A track whose net is replaced by the test's word of what it found."""

    track: Track
    stamp: float = 0.0
    looks: list[Look] = field(default_factory=list)

    def tell(
        self,
        score: float,
        box: Box = BOX,
        dt: float = DT,
        frame: Image = FRAME,
        deviation: float = 0.01,
    ) -> TrackResult:
        """The result of the next frame, in which the net finds ``box`` with ``score``."""
        self.stamp += dt
        look = self.track.look(frame, self.stamp)
        self.looks.append(look)
        found = said(look.crop.to_unit(box), np.full(4, deviation**2), score)
        return self.track.learn(frame, found, look.memory)

    def lose(self) -> TrackResult:
        for _ in range(20):
            result = self.tell(UNSEEN)
            if result.state is LOST:
                return result
        raise AssertionError("never lost")


@pytest.fixture
def start(network: Network) -> Callable[..., Scripted]:
    """start(field=value, ...): a track on BOX at stamp 0 with `ANY` changed."""

    def make(**changes: object) -> Scripted:
        config = replace(ANY, **changes)  # type: ignore[arg-type]
        return Scripted(Track(network, FRAME, BOX, 0.0, config))

    return make


def is_near(look: Look) -> bool:
    """Whether a look is around where the target was lost, which is BOX."""
    crop = look.crop
    return math.hypot(crop.x + crop.side / 2 - BOX.cx, crop.y + crop.side / 2 - BOX.cy) < 3


def assert_covariance(covariance: np.ndarray) -> None:
    """Symmetric and positive definite."""
    assert (covariance == covariance.T).all()
    np.linalg.cholesky(covariance)


# -- following -----------------------------------------------------------------------------------


def test_it_starts_on_the_box(network: Network) -> None:
    result = OnlineTracker(network).init(FRAME, BOX, 5.0)
    assert result.box == BOX
    assert (result.state, result.stamp, result.score, result.reason) == (TRACKING, 5.0, 1.0, "")
    assert result.covariance.shape == (4, 4)
    assert_covariance(result.covariance)


def test_a_seen_target_is_followed(start: Callable[..., Scripted]) -> None:
    """80 px/s to the right and growing by 8 % a second, for four seconds."""
    run = start()
    for k in range(1, 31):
        box = Box.from_cxcywh(320 + 10 * k, 215, 40 * 1.01**k, 30 * 1.01**k)
        result = run.tell(SEEN, box)
        assert result.state is TRACKING
        assert result.reason == ""
        assert result.stamp == run.stamp
        assert_covariance(result.covariance)
    assert float(iou(result.box, clip_to_frame(box, (640, 480)))) > 0.9
    assert run.track._filter.mean[4] == pytest.approx(80, abs=5)


def test_the_box_does_not_lag_behind_a_quick_target(start: Callable[..., Scripted]) -> None:
    """Nearly its own extent a frame, seen by a net that is not sure to a fifth of it: a filter that
    took all of that for noise would trust its own idea of a target that stands still."""
    overlaps: dict[float, list[float]] = {}
    for independent in (0.05, 1.0):
        run = start(kalman=KalmanConfig(independent=independent))
        overlaps[independent] = []
        for k in range(1, 9):
            box = Box.from_cxcywh(320 + 30 * k, 215, 40, 30)
            result = run.tell(SEEN, box, dt=1 / 32, deviation=0.05)
            overlaps[independent].append(float(iou(result.box, box)))
            assert result.state is TRACKING
            side = run.looks[-1].crop.side
            seen = run.track.uncertainty().filtered
            assert (np.diag(seen) > (0.05 * side) ** 2).all(), "published is all of it"
    assert min(overlaps[0.05]) > 0.8
    assert min(overlaps[1.0]) < 0.5
    assert TrackerConfig().kalman.independent == 0.05


def test_the_search_crop_is_four_times_the_predicted_box(start: Callable[..., Scripted]) -> None:
    run = start()
    for k in range(1, 11):
        run.tell(SEEN, Box(300 + 10 * k, 200, 40, 30))
    run.tell(SEEN, Box(410, 200, 40, 30))
    crop = run.looks[-1].crop
    assert crop.side == pytest.approx(4 * math.sqrt(40 * 30), rel=0.1)
    assert crop.x + crop.side / 2 == pytest.approx(430, abs=6)  # where it will be, not was
    assert run.looks[-1].image.shape == (64, 64, 3)


@pytest.mark.parametrize(("grown", "anchored"), [(3.0, 3**-0.3), (0.3, 0.3**-0.3), (12.0, 0.5)])
def test_the_first_boxs_size_has_a_share_in_the_search_crops(
    start: Callable[..., Scripted], grown: float, anchored: float
) -> None:
    """A share that is bounded; and none without an anchor."""
    sides = []
    for changes in ({}, {"size_anchor": 0.0}):
        run = start(**changes)
        for k in range(1, 81):  # grows, then holds
            factor = grown ** min(k / 40, 1.0)
            run.tell(SEEN, Box.from_cxcywh(320, 215, 40 * factor, 30 * factor))
        sides.append(run.looks[-1].crop.side)
    assert sides[1] == pytest.approx(4 * grown * math.sqrt(40 * 30), rel=0.02)
    assert sides[0] / sides[1] == pytest.approx(anchored, rel=0.02)


@pytest.mark.parametrize(
    ("seen", "deltas"),
    [
        (Box.from_cxcywh(320, 215, 80, 30), (0, 0, math.log(0.5), 0)),  # twice the width
        (Box.from_cxcywh(324, 212, 40, 15), (-0.1, 0.2, 0, math.log(2))),
        (Box.from_cxcywh(380, 215, 40, 30), (0, 0, 0, 0)),  # something else
        (Box.from_cxcywh(320, 215, math.nan, 30), (0, 0, 0, 0)),
    ],
)
def test_the_net_is_told_of_its_error_on_the_first_frame(
    network: Network,
    monkeypatch: pytest.MonkeyPatch,
    seen: Box,
    deltas: tuple[float, float, float, float],
) -> None:
    """From then on, also after new templates and after the stamps have jumped back."""
    crop = Crop.around(BOX, network.config.search_factor, network.config.search_size)
    found = said(crop.to_unit(seen), np.full(4, 1e-4), SEEN)
    memories = []

    def step(crops: list[Image], given: list[Memory], *_: object) -> tuple[list, list]:
        memories.extend(given)
        return [found], given

    monkeypatch.setattr(network, "step", step)
    run = Scripted(Track(network, FRAME, BOX, 0.0, replace(ANY, template_every=2)))
    before, after = memories
    assert not before.deltas.any()
    np.testing.assert_allclose(after.deltas[0], deltas, atol=1e-6)
    for _ in range(6):
        run.tell(SEEN)
    run.stamp = -1.0
    run.tell(SEEN)
    run.tell(SEEN)
    for look in run.looks:
        assert look.memory.deltas.equal(after.deltas)
    assert run.looks[0].memory.templates.length < run.looks[3].memory.templates.length


def test_the_net_is_told_where_the_target_was(start: Callable[..., Scripted]) -> None:
    """In the frame before, in units of that frame's crop; of nothing while the track is lost."""
    run = start()
    results = [run.track.result]
    for k in range(4):
        results.append(run.tell(SEEN, BOX._replace(x=BOX.x + 5 * k, w=BOX.w + 2 * k)))
    crops = [run.looks[0].crop, *(look.crop for look in run.looks)]  # the first one's is its own
    for crop, look, result in zip(crops, run.looks, results, strict=False):
        told = look.memory.box[0].numpy()
        np.testing.assert_allclose(told, crop.to_unit(result.box), atol=1e-6)
    run.lose()
    run.tell(UNSEEN)
    assert not run.looks[-1].memory.box.any()


def test_what_is_left_of_the_first_frame_s_error_stays_in_the_covariance(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Left when the net has been told of it: here it does not listen."""
    seen = Box.from_cxcywh(320 + 4, 215 - 6, 40 * 1.21, 30)  # off by .1 w, .2 h, .21 w
    variances = []
    for answer in (seen, BOX):
        crop = Crop.around(BOX, network.config.search_factor, network.config.search_size)
        found = said(crop.to_unit(answer), np.full(4, 1e-4), SEEN)
        with monkeypatch.context() as patch:
            patch.setattr(network, "step", lambda crops, memories, *_, f=found: ([f], memories))
            track = Track(network, FRAME, BOX, 0.0, ANY)
        run = Scripted(track)
        for _ in range(40):
            result = run.tell(SEEN, Box.from_cxcywh(320, 215, 40, 30))
        variances.append(np.diag(result.covariance))
    lasting = np.array([0.1 * 40, 0.2 * 30, 0.21 * 40, 0.0])
    np.testing.assert_allclose(variances[0] - variances[1], lasting**2, rtol=0.15, atol=0.5)


def test_many_measurements_do_not_make_the_box_surer_than_one(
    start: Callable[..., Scripted],
) -> None:
    """Errors of successive frames are alike: averaging does not remove them."""
    run = start()
    for _ in range(60):
        result = run.tell(SEEN, deviation=0.03)
    age = 60 * DT
    sigma = 0.03 * run.looks[-1].crop.side * math.sqrt(1 + Calibration().drift * age)
    found = np.sqrt(np.diag(result.covariance))
    assert (found > sigma).all()
    assert (found < 1.5 * sigma).all()


def test_motion_between_crops_is_reported_to_the_net(start: Callable[..., Scripted]) -> None:
    run = start()
    for k in range(1, 4):
        run.tell(SEEN, Box(300 + 20 * k, 200, 40, 30))
    assert run.looks[0].motion == (0, 0, 1)
    old, new = run.looks[-2].crop, run.looks[-1].crop
    assert run.looks[-1].motion == pytest.approx(
        ((new.x - old.x) / old.side, (new.y - old.y) / old.side, new.side / old.side)
    )
    assert {look.trust for look in run.looks} == {1.0}


def test_a_sure_net_is_believed_through_a_jump(start: Callable[..., Scripted]) -> None:
    run = start()
    result = run.tell(SEEN, Box(350, 230, 40, 30), dt=1 / 30)
    assert result.state is TRACKING
    assert float(iou(result.box, Box(350, 230, 40, 30))) > 0.5


def test_an_unsure_net_is_not_believed_through_a_jump(start: Callable[..., Scripted]) -> None:
    run = start()
    result = run.tell(UNSURE, Box(350, 230, 40, 30), dt=1 / 30, deviation=0.001)
    assert result.state is UNCERTAIN
    assert "jump" in result.reason
    assert result.box == pytest.approx(BOX)


def test_an_unsure_net_near_the_prediction_is_used(start: Callable[..., Scripted]) -> None:
    run = start()
    for _ in range(20):
        result = run.tell(UNSURE, Box(302, 201, 40, 30))
        assert result.state is UNCERTAIN
        assert "score 0.35 is below 0.45" in result.reason
    assert result.box.x == pytest.approx(302, abs=0.5)


# -- losing --------------------------------------------------------------------------------------


def test_unseen_is_uncertain_first_and_lost_after_the_patience(
    start: Callable[..., Scripted],
) -> None:
    run = start(patience=0.5)
    run.tell(SEEN)
    states = [run.tell(UNSEEN).state for _ in range(8)]
    assert states == [UNCERTAIN] * 4 + [LOST] * 4


def test_patience_is_time_and_not_frames(start: Callable[..., Scripted]) -> None:
    run = start(patience=0.5)
    states = [run.tell(UNSEEN, dt=0.01).state for _ in range(60)]
    assert states.index(LOST) in (49, 50)


def test_being_seen_again_restores_patience(start: Callable[..., Scripted]) -> None:
    run = start(patience=0.5)
    for _ in range(5):
        assert [run.tell(UNSEEN).state for _ in range(4)] == [UNCERTAIN] * 4
        assert run.tell(SEEN).state is TRACKING


def test_every_state_but_tracking_has_a_reason(start: Callable[..., Scripted]) -> None:
    run = start()
    for score in (SEEN, UNSURE, UNSEEN, SEEN, *[UNSEEN] * 10, SEEN, SEEN, UNSURE):
        result = run.tell(score)
        assert bool(result.reason) == (result.state is not TRACKING)


def test_an_unseen_frame_is_not_measured(start: Callable[..., Scripted]) -> None:
    """Whatever box comes with a low score, the prediction stands."""
    run = start()
    run.tell(SEEN)
    before = run.track.result
    after = run.tell(UNSEEN, Box(100, 100, 10, 10))
    assert after.box.cx == pytest.approx(before.box.cx, abs=1)
    assert np.linalg.det(after.covariance) > np.linalg.det(before.covariance)


@pytest.mark.parametrize("speed", [(0, 0), (300, 0), (-400, 300), (900, -900)])
def test_a_lost_box_never_runs_away(
    start: Callable[..., Scripted], speed: tuple[float, float]
) -> None:
    """Lost at any speed: ten minutes later the box stands where it was lost, in the picture or not
    far from it."""
    run = start()
    for k in range(1, 6):
        run.tell(SEEN, Box(300 + speed[0] * k / 30, 200 + speed[1] * k / 30, 40, 30), dt=1 / 30)
    run.lose()
    first = run.tell(UNSEEN).box
    assert -640 <= first.cx <= 2 * 640
    assert -480 <= first.cy <= 2 * 480
    for _ in range(600):
        result = run.tell(UNSEEN, dt=1.0)
        assert result.state is LOST
        assert result.box == first


def test_lost_uncertainty_grows_to_a_bound(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    spreads = []
    for _ in range(2000):
        covariance = run.tell(UNSEEN).covariance
        assert_covariance(covariance)
        spreads.append(np.sqrt(np.diag(covariance)))
    spread = np.array(spreads)
    assert (np.diff(spread, axis=0) >= -1e-6).all()
    assert (spread[20] > 2 * spread[0]).all()
    # the filter's is bounded, so is what age makes of it; what a drawn box leaves open is tiny
    bound = 640 * math.sqrt(1 + Calibration().drift * LONGEST)
    assert spread.max() <= bound * (1 + 1e-5)
    assert spread[-1, 0] == pytest.approx(bound, rel=1e-5)


def test_the_lost_search_widens_to_its_bound(start: Callable[..., Scripted]) -> None:
    run = start(widest=2.0, widening=1.0, patience=0.5)
    run.lose()
    usual = 4 * math.sqrt(run.track.result.box.w * run.track.result.box.h)
    for _ in range(30):
        run.tell(UNSEEN)
    sides = [look.crop.side for look in run.looks[-30:] if is_near(look)]
    assert sides == sorted(sides)
    assert sides[0] < 1.5 * usual
    # a side that is a multiple of the crop is a multiple of 2, 4, ... px as well
    assert sides[-1] == sides[-5] == pytest.approx(2 * usual, abs=4)


def test_the_lost_search_covers_the_picture(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    for _ in range(60):
        run.tell(UNSEEN)
    seen = np.zeros(FRAME.shape[:2], dtype=bool)
    far = [look.crop for look in run.looks if not is_near(look)]
    for crop in far:
        seen[max(crop.y, 0) : crop.y + crop.side, max(crop.x, 0) : crop.x + crop.side] = True
    assert seen.all()
    assert 20 <= len(far) <= 30, "every second look goes to where it was lost"
    first, last = (math.hypot(c.x + c.side / 2 - 320, c.y + c.side / 2 - 215) for c in far[:19:18])
    assert first < last, "outwards"


@pytest.mark.parametrize(("score", "found"), [(0.9, True), (0.6, False)])
def test_a_target_that_returns_elsewhere_is_found_by_three_sure_looks(
    start: Callable[..., Scripted], score: float, found: bool
) -> None:
    run = start()
    run.lose()
    there, seen = Box(20, 420, 40, 30), []
    for _ in range(100):
        crop = copied(run.track).look(FRAME, run.stamp + DT).crop
        unit = crop.to_unit(there)
        shows = bool((np.abs(unit[:2] - 0.5) < 0.4).all())
        result = run.tell(score if shows else UNSEEN, there if shows else BOX)
        seen.append(shows)
        if result.state is TRACKING:
            break
    assert (result.state is TRACKING) == found
    if found:
        assert seen[-3:] == [True] * 3
        assert not any(seen[:-3])
        assert float(iou(result.box, there)) > 0.9


def test_the_three_sure_looks_must_show_the_same_place(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    while is_near(copied(run.track).look(FRAME, run.stamp + DT)):
        run.tell(UNSEEN)
    crop = copied(run.track).look(FRAME, run.stamp + DT).crop
    here = crop.to_frame(np.array([0.5, 0.5, 0.1, 0.1]))
    there = Box(here.x + 2 * here.w, here.y, here.w, here.h)
    states = [run.tell(SEEN, box).state for box in (here, here, there, there, there)]
    assert states == [LOST] * 4 + [TRACKING]


def test_a_look_elsewhere_leaves_the_memory(
    start: Callable[..., Scripted],
) -> None:
    run = start()
    run.lose()
    for _ in range(12):
        run.tell(UNSEEN)
    kept = []
    for _ in range(6):
        run.stamp += DT
        look = run.track.look(FRAME, run.stamp)
        after = look.memory._replace()
        found = said(look.crop.to_unit(BOX), np.full(4, 1e-4), UNSEEN)
        run.track.learn(FRAME, found, after)
        kept.append((run.track._memory is after, is_near(look)))
    assert sorted(kept) == [(False, False)] * 3 + [(True, True)] * 3


def test_lost_frames_are_not_trusted(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    run.tell(UNSEEN)
    assert run.looks[-1].trust == 0.0
    run.tell(SEEN)
    run.tell(SEEN)
    run.tell(SEEN)
    assert [look.trust for look in run.looks[-3:]] == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("speeds", [(-150, -120), (300, 240)])
def test_a_size_that_was_changing_stays_plausible_while_unseen(
    start: Callable[..., Scripted], speeds: tuple[float, float]
) -> None:
    """Else the search crop, a multiple of the box, would shrink to nothing or to everything."""
    run = start()
    for k in range(1, 4):
        t = k / 30
        run.tell(SEEN, Box.from_cxcywh(320, 215, 40 + speeds[0] * t, 30 + speeds[1] * t), dt=1 / 30)
    seen = run.track.result.box
    run.lose()
    lost = run.tell(UNSEEN).box
    assert 0.5 < math.sqrt(lost.w * lost.h / (seen.w * seen.h)) < 2.0


# -- the camera turns ----------------------------------------------------------------------------

_noise = np.random.default_rng(1).integers(0, 256, (60, 300, 3), dtype=np.uint8)
PANORAMA = np.asarray(cv2.resize(_noise, (2400, 480), interpolation=cv2.INTER_CUBIC), np.uint8)
STATUE = Box(1000, 200, 40, 30)  # in the panorama: the target
LURE = Box(560, 320, 40, 30)  # in the picture: something else that the net takes for the target


@dataclass
class Turning:
    """A track of a thing that stands still in a panorama, of which the camera shows a part."""

    run: Scripted
    left: int = 700  # where the picture begins
    thing: Box = STATUE  # in the panorama

    @property
    def true(self) -> Box:
        """The thing in the picture, or outside of it."""
        return self.thing._replace(x=self.thing.x - self.left)

    @property
    def part(self) -> Box:
        """What of it is in the picture."""
        return clip_to_frame(self.true, (640, 480))

    @property
    def frame(self) -> Image:
        return PANORAMA[:, self.left : self.left + 640].copy()

    def turn(self, by: int, score: float = SEEN, box: Box | None = None) -> TrackResult:
        """The camera turns by so many pixels; the net sees what of the thing is in the picture,
        or ``box``."""
        self.left += by
        return self.run.tell(score, box or self.part, 1 / 32, self.frame)


@pytest.fixture
def turning(network: Network) -> Turning:
    """Seen for some frames by a camera that stands still."""
    frame = PANORAMA[:, 700:1340].copy()
    out = Turning(Scripted(Track(network, frame, Box(300, 200, 40, 30), 0.0, ANY)))
    for _ in range(5):
        out.turn(0)
    return out


def test_an_unseen_target_keeps_its_place_in_the_scene(turning: Turning) -> None:
    turning.turn(0, UNSEEN)
    for by in (12, 24, -36, -40, 8):
        result = turning.turn(by, UNSEEN)
        assert result.state is UNCERTAIN
        assert result.box == pytest.approx(turning.true, abs=5)


def test_a_target_that_the_camera_leaves_is_not_taken_for_another(turning: Turning) -> None:
    """The net is fairly sure of something else in the picture, all the while."""
    while turning.true.x > 0:
        assert turning.turn(20).state is TRACKING
    results = [turning.turn(20, 0.6, LURE) for _ in range(24)]
    inside = [result for result in results if result.state is UNCERTAIN]
    assert results == [*inside, *(result for result in results if result.state is LOST)]
    assert 1 <= len(inside) <= 4
    assert all(result.box.x + result.box.w >= 1 for result in inside)
    assert "the target has left the picture" in results[len(inside)].reason
    assert results[-1].box == pytest.approx(turning.true, abs=12)


def test_a_box_that_was_drawn_mostly_outside_is_followed(network: Network) -> None:
    box = Box(-26, 200, 40, 30)
    run = Scripted(Track(network, FRAME, box, 0.0, ANY))
    for _ in range(5):
        assert run.tell(0.6, clip_to_frame(box, (640, 480))).state is TRACKING
    assert run.track.result.box == pytest.approx((0, 200, 14, 30), abs=1)


@pytest.mark.parametrize("dt", [0.0, 0.002])
def test_a_stamp_that_is_repeated_while_cut_off_changes_no_speed(
    turning: Turning, dt: float
) -> None:
    """Nor one that comes too early: the turn is measured over that frame and the next."""
    while turning.true.x > -10:
        turning.turn(15)
    speed = turning.run.track._filter.mean[4]
    turning.left += 5
    turning.run.tell(SEEN, turning.part, dt, turning.frame)
    turning.turn(10)
    assert turning.run.track._filter.mean[4] == pytest.approx(speed, abs=200)
    for _ in range(4):
        turning.turn(-15)
    assert turning.run.track._filter.mean[4] == pytest.approx(15 * 32, abs=60)


def test_where_the_camera_finds_it_again_it_is_tracked_at_once(turning: Turning) -> None:
    while turning.true.x > 0:
        turning.turn(20)
    for _ in range(24):
        turning.turn(20, UNSEEN, LURE)
    assert turning.run.track.lost
    for _ in range(24):
        turning.turn(-20, UNSEEN, LURE)
    turning.turn(-60, UNSEEN, LURE)
    assert "seen once again" in turning.turn(0, 0.5).reason
    assert turning.turn(0, 0.5).state is TRACKING
    assert turning.run.track.result.box == pytest.approx(turning.true, abs=2)


def test_where_its_place_is_not_known_every_second_look_goes_elsewhere(turning: Turning) -> None:
    """As after a jerk of the camera. Before, the place is outside, and all looks are at the edge
    that is nearest to it, until they are as wide as they get."""
    while turning.true.x > -60:
        gone = turning.true.x < 0
        turning.turn(20, UNSEEN if gone else SEEN, LURE if gone else None)
    looks = []
    for by in (20, 20, 20, 20, 400, *[20] * 5):
        assert turning.run.track.lost
        turning.turn(by, UNSEEN, LURE)
        crop = turning.run.looks[-1].crop
        looks.append(crop.x + crop.side / 2 < 10)
    assert looks[:4] == [True] * 4
    assert looks[4:] == [True, False] * 3


def test_a_target_that_is_seen_again_has_its_place_again(turning: Turning) -> None:
    for _ in range(2):
        turning.turn(0, UNSEEN)
    turning.turn(400, UNSEEN)
    turning.turn(-400, SEEN)
    while not turning.run.track.lost:
        turning.turn(0, UNSEEN)
    for _ in range(5):
        turning.turn(0, UNSEEN)
        assert is_near(turning.run.looks[-1])


def test_far_from_its_place_a_lost_target_takes_three_sure_looks(turning: Turning) -> None:
    turning.run.track.config = replace(ANY, patience=0.05)
    while not turning.run.track.lost:
        turning.turn(0, UNSEEN)
    assert [turning.turn(0, 0.6, LURE).state for _ in range(5)] == [LOST] * 5
    assert [turning.turn(0, 0.8, LURE).state for _ in range(3)] == [LOST, LOST, TRACKING]


def test_a_sure_net_is_believed_though_the_target_should_have_left(turning: Turning) -> None:
    while turning.true.x > 0:
        turning.turn(20)
    turning.turn(15)
    assert turning.turn(15, 0.6, LURE).state is UNCERTAIN
    assert turning.turn(0, 0.8, LURE).state is TRACKING


def test_a_target_that_is_not_whole_in_the_picture_keeps_its_size(turning: Turning) -> None:
    """The net sees the part that is in the picture; that is published, the rest is known."""
    while turning.true.x > 0:
        turning.turn(10)
    for _ in range(2):
        assert turning.turn(8, 0.6).state is TRACKING
        assert turning.run.track.result.box == pytest.approx(turning.part, abs=3)
        assert turning.part.w < 40
    assert turning.run.looks[-1].crop.side == pytest.approx(4 * math.sqrt(40 * 30), abs=8)
    for _ in range(3):
        turning.turn(-20)
    assert turning.run.track.result.box == pytest.approx(turning.true, abs=2)


@pytest.mark.parametrize("speed", [0, 6])
def test_a_speed_outlasts_the_picture_s_edge(turning: Turning, speed: int) -> None:
    """The filter's speed is in the picture, but in the scene while the target is cut off; by
    neither change is something else expected of the next frame. And while it is in the scene, a
    camera that turns back is no surprise."""
    cut = []
    for step in [24] * (13 - speed // 3) + [-24] * 4:
        turning.thing = turning.thing._replace(x=turning.thing.x - speed)
        turning.left += step
        ahead = copied(turning.run.track)
        ahead.look(turning.frame, turning.run.stamp + 1 / 32)
        if len(cut) > 2:
            assert ahead._filter.mean[0] == pytest.approx(turning.true.cx, abs=10)
        turning.turn(0)
        cut.append(turning.part.w < 40)
    assert any(cut)
    assert not any(cut[-2:])
    assert turning.run.track._filter.mean[4] == pytest.approx((24 - speed) * 32, abs=80)


def test_nothing_is_kept_of_frames_that_the_target_has_left(turning: Turning) -> None:
    while turning.true.x > 0:
        turning.turn(20)
    turning.turn(15)
    kept = turning.run.track._crop
    result = turning.turn(15, 0.6, LURE)
    assert result.score == 0.0
    assert result.reason == "the target has left the picture"
    assert turning.run.track._crop is kept


@pytest.mark.parametrize(
    ("first", "to_right", "away"),
    [(56, False, 20), (16, True, 20), (96, True, 16), (8, True, 12)],
)
def test_the_shipped_net_finds_a_person_again_whom_the_camera_has_left(
    first: int, to_right: bool, away: int
) -> None:
    """A part of the bundled clip through a virtual camera of half its width, which turns away for
    a second to where others are; when it comes back, others are near, too."""
    with open_bag(REAL) as bag:
        truth, images = bag.truth(), list(bag.images())
    images = images[first : first + 90]
    boxes = np.array([truth[image.stamp] for image in images])
    width = 320
    turned = np.interp(np.arange(90), [10, 18, 40, 48], [0, 1, 1, 0])
    middle = np.clip(boxes[:, 0] + boxes[:, 2] / 2 - width / 2, 0, width)
    lefts = ((1 - turned) * middle + turned * width * to_right).round().astype(int)
    tracker = OnlineTracker(open_network("vil_nano"))
    results, overlaps, absent = [], [], []
    for k, (image, left) in enumerate(zip(images, lefts, strict=True)):
        picture = image.frame[:, left : left + width].copy()
        box = Box(*boxes[k])._replace(x=boxes[k][0] - left)
        if k == 0:
            tracker.init(picture, box, 0.0)
            continue
        results.append(tracker.update(picture, k / 30))
        part = clip_to_frame(box, (width, picture.shape[0]))
        absent.append(part.w < 1)
        overlaps.append(float(iou(results[-1].box, part)))
    assert absent.count(True) >= away
    claims = [one.state is TRACKING for one, gone in zip(results, absent, strict=True) if gone]
    assert claims.count(True) < 0.25 * len(claims)
    assert np.mean(overlaps[-30:]) > 0.6
    assert results[-1].state is TRACKING


# -- recognising the target ----------------------------------------------------------------------

BACKGROUND, TARGET, OTHER = np.eye(3, 32)


def scene(thing: np.ndarray) -> np.ndarray:
    """Features (4, 4, 32) of a crop with a thing in its middle."""
    seen = np.tile(BACKGROUND, (4, 4, 1))
    seen[1:3, 1:3] = thing
    return seen.astype(np.float32)


@dataclass
class Recognising(Scripted):
    """A track that knows what `TARGET` looks like; the net takes anything for it. What it learns,
    by a share of nothing, is the same in a new value."""

    def __post_init__(self) -> None:
        unit = np.array([0.5, 0.5, 1, 1])
        self.track._recognition = Recognition.begin(scene(TARGET), unit)
        self.track._lessons = 5

    def show(self, thing: np.ndarray, score: float = 0.6, box: Box = BOX) -> TrackResult:
        self.stamp += DT
        look = self.track.look(FRAME, self.stamp)
        unit = look.crop.to_unit(box)
        found = Found(unit, np.full(4, 1e-4), score, scene(thing))
        return self.track.learn(FRAME, found, look.memory)

    @property
    def response(self) -> float:
        return self.track._recognition.response(scene(TARGET), np.full(4, 0.5))


@pytest.fixture
def recognising(network: Network) -> Recognising:
    return Recognising(Track(network, FRAME, BOX, 0.0, TrackerConfig(learning=0.0)))


def test_what_does_not_look_like_the_target_counts_for_little(recognising: Recognising) -> None:
    same = recognising.show(TARGET)
    assert (same.state, same.score, same.reason) == (TRACKING, 0.6, "")
    other = recognising.show(OTHER)
    assert other.state is UNCERTAIN
    assert other.score < 0.1
    assert other.reason.endswith("; it does not look like the target")


def test_it_counts_after_five_frames_to_learn_from(recognising: Recognising) -> None:
    recognising.track._lessons = 0
    scores = [recognising.show(OTHER).score for _ in range(7)]
    assert scores[:5] == [0.6] * 5
    assert max(scores[5:]) < 0.1


def test_nothing_is_asked_of_looks_where_that_is_turned_off(recognising: Recognising) -> None:
    recognising.track.config = TrackerConfig(alike=0.0)
    assert recognising.show(OTHER).score == 0.6


def test_a_score_falls_with_the_square_of_the_response(recognising: Recognising) -> None:
    """A lost target, which is looked for in wider crops, may respond by a quarter less."""
    recognising.track.config = TrackerConfig(alike=2 * recognising.response, learning=0.0)
    assert recognising.show(TARGET).score == pytest.approx(0.6 / 4)
    for _ in range(6):
        recognising.show(OTHER)
    assert recognising.track.lost
    assert recognising.show(TARGET).score == pytest.approx(0.6 / 4 / 0.75**2)


def test_it_learns_from_frames_that_show_the_target_whole_and_surely(
    recognising: Recognising,
) -> None:
    track = recognising.track
    known = track._recognition
    recognising.show(TARGET, score=0.3)
    assert recognising.show(OTHER).state is UNCERTAIN
    assert track._recognition is known
    recognising.show(TARGET)
    assert track._recognition is not known
    known = track._recognition
    for x in range(300, -60, -40):  # out of the picture
        before, result = track._recognition, recognising.show(TARGET, box=Box(x, 200, 40, 30))
        if x < -2:
            assert track._recognition is before
    assert known is not before
    assert result.state is TRACKING, "half of it is seen"


def test_a_lost_track_learns_nothing_until_two_seconds_after_it_is_found(
    recognising: Recognising,
) -> None:
    """What was found may be another one."""
    for _ in range(6):
        recognising.show(OTHER)
    assert recognising.track.lost
    known = recognising.track._recognition
    assert [recognising.show(TARGET).state for _ in range(2)] == [LOST, TRACKING]
    for _ in range(15):
        assert recognising.show(TARGET).state is TRACKING
        assert recognising.track._recognition is known
    recognising.show(TARGET)
    assert recognising.track._recognition is not known


def test_tracks_learn_each_its_own_target(network: Network) -> None:
    one, other = (Track(network, FRAME, BOX, 0.0, TrackerConfig()) for _ in range(2))
    before = other._recognition
    look = one.look(FRAME, DT)
    one.learn(
        FRAME, Found(look.crop.to_unit(BOX), np.full(4, 1e-4), 0.9, scene(OTHER)), look.memory
    )
    assert other._recognition is before


# -- coming back ---------------------------------------------------------------------------------


def test_found_again_after_exactly_two_confident_frames(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    there = Box(360, 240, 40, 30)
    first = run.tell(SEEN, there)
    assert first.state is LOST
    assert "seen once" in first.reason
    second = run.tell(SEEN, there)
    assert second.state is TRACKING
    assert second.box == pytest.approx(there)
    assert_covariance(second.covariance)
    assert run.tell(SEEN, there).state is TRACKING


def test_the_two_frames_must_follow_each_other(start: Callable[..., Scripted]) -> None:
    run = start(widest=9.0)  # no look goes elsewhere yet
    run.lose()
    states = [run.tell(score).state for score in (SEEN, UNSEEN, SEEN, UNSURE, SEEN, SEEN)]
    assert states == [LOST] * 5 + [TRACKING]


def test_the_two_frames_must_show_the_same_place(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    here, there = Box(280, 180, 40, 30), Box(360, 260, 40, 30)
    states = [run.tell(SEEN, box).state for box in (here, there, here, here)]
    assert states == [LOST, LOST, LOST, TRACKING]


def test_the_second_look_is_around_the_first_sight(start: Callable[..., Scripted]) -> None:
    run = start()
    run.lose()
    run.tell(SEEN, Box(360, 240, 40, 30))
    run.tell(SEEN, Box(360, 240, 40, 30))
    crop = run.looks[-1].crop
    assert crop == Crop.around(Box(360, 240, 40, 30), 4.0, 64)


def test_lost_again_takes_the_whole_patience(start: Callable[..., Scripted]) -> None:
    run = start(patience=0.5)
    run.lose()
    run.tell(SEEN)
    run.tell(SEEN)
    assert [run.tell(UNSEEN).state for _ in range(5)] == [UNCERTAIN] * 4 + [LOST]


# -- time and frames -----------------------------------------------------------------------------


def test_stamps_that_jump_back_reset_with_a_reason(start: Callable[..., Scripted]) -> None:
    """A looped bag: lost for two frames, then found where the target is."""
    run = start()
    run.stamp = 60.0
    run.tell(SEEN)
    first = run.tell(SEEN, dt=-60.0)
    assert first.state is LOST
    assert "the stamps jumped back by 60.000 s" in first.reason
    assert first.stamp == run.stamp
    assert run.looks[-1].motion == (0, 0, 1)
    assert not run.looks[-1].memory.context.known.any()
    assert run.tell(SEEN).state is TRACKING


def test_the_reason_of_a_reset_is_told_until_found_again(start: Callable[..., Scripted]) -> None:
    run = start()
    run.stamp = 60.0
    run.tell(SEEN)
    run.tell(UNSEEN, dt=-60.0)
    assert "jumped back" in run.tell(UNSEEN).reason
    run.tell(SEEN)
    run.tell(SEEN)
    assert "jumped back" not in run.lose().reason


def test_another_resolution_resets_with_a_reason_and_scales_the_box(
    start: Callable[..., Scripted],
) -> None:
    run = start()
    run.tell(SEEN)
    half = np.ascontiguousarray(FRAME[::2, ::2])
    small = Box(150, 100, 20, 15)
    first = run.tell(SEEN, small, frame=half)
    assert first.state is LOST
    assert "the image changed from 640x480 to 320x240" in first.reason
    assert first.box == pytest.approx(small, abs=0.5)
    second = run.tell(SEEN, small, frame=half)
    assert second.state is TRACKING
    assert second.box == pytest.approx(small)


def test_repeated_stamps_are_fine(start: Callable[..., Scripted]) -> None:
    run = start()
    run.tell(SEEN)
    for _ in range(50):
        result = run.tell(SEEN, dt=0.0)
        assert result.state is TRACKING
        assert result.box == pytest.approx(BOX, abs=0.1)
        assert_covariance(result.covariance)


def test_only_stamps_are_time(start: Callable[..., Scripted]) -> None:
    """However slowly the frames are taken in, and wherever the clock starts."""
    results = []
    for origin, pause in ((0.0, 0.0), (1.7e9, 0.01)):
        run = start()
        run.track._stamp = run.stamp = origin
        for score in (SEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN, UNSEEN):
            time.sleep(pause)
            result = run.tell(score)
            results.append((origin, result.state, result.box, result.covariance.tolist()))
    half = len(results) // 2
    assert [one[1:] for one in results[:half]] == [one[1:] for one in results[half:]]


def test_age_is_counted_through_a_pause_and_from_no_stamp_that_jumps_back(
    start: Callable[..., Scripted],
) -> None:
    run = start()
    run.tell(SEEN, dt=10.0)
    assert run.track.uncertainty().age == 10.0
    run.tell(SEEN, dt=-5.0)
    run.tell(SEEN, dt=0.5)
    assert run.track.uncertainty().age == 10.5


def test_a_long_pause_counts_as_one_second(start: Callable[..., Scripted]) -> None:
    run = start()
    for k in range(1, 6):
        run.tell(SEEN, Box(300 + 5 * k, 200, 40, 30))
    result = run.tell(SEEN, Box(375, 200, 40, 30), dt=3600.0)
    assert result.state is TRACKING
    assert result.box.x == pytest.approx(375, abs=2)


@pytest.mark.parametrize("stamp", [math.nan, math.inf, -math.inf])
def test_a_stamp_that_is_no_time_is_refused(network: Network, stamp: float) -> None:
    """And leaves the track as it was."""
    tracker = OnlineTracker(network)
    with pytest.raises(ValueError, match="stamp"):
        tracker.init(FRAME, BOX, stamp)
    tracker.init(FRAME, BOX, 0.0)
    with pytest.raises(ValueError, match="stamp"):
        tracker.update(FRAME, stamp)
    result = tracker.update(FRAME, DT)
    assert np.isfinite(result.box).all()
    assert result.stamp == DT


# -- what a net may say --------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["unit", "variance", "score", "seen"])
def test_a_net_that_answers_nan_counts_as_not_seeing(
    start: Callable[..., Scripted], what: str
) -> None:
    run = start()
    run.tell(SEEN)
    run.stamp += DT
    look = run.track.look(FRAME, run.stamp)
    found = said(look.crop.to_unit(BOX), np.full(4, 1e-4), SEEN)
    broken = math.nan if what == "score" else np.full_like(getattr(found, what), math.nan)
    result = run.track.learn(FRAME, found._replace(**{what: broken}), look.memory)
    assert result.state is UNCERTAIN
    assert "finite" in result.reason
    assert np.isfinite(result.box).all()
    assert math.isfinite(result.score)
    assert_covariance(result.covariance)
    assert run.tell(SEEN).state is TRACKING


def test_motion_is_from_the_last_crop_of_which_anything_was_kept(
    start: Callable[..., Scripted],
) -> None:
    """Not from that of a frame in which the net's answer could not be."""
    run = start()
    run.tell(SEEN, BOX._replace(x=BOX.x + 20))
    kept = run.looks[-1].crop
    run.stamp += DT
    lost = run.track.look(FRAME, run.stamp)
    run.track.learn(FRAME, said(np.full(4, math.nan), np.full(4, 1e-4), SEEN), lost.memory)
    run.tell(SEEN)
    now = run.looks[-1]
    assert lost.crop != kept
    assert now.motion == pytest.approx(crop_motion(kept, now.crop))


@pytest.mark.parametrize("unit", [(0.5, 0.5, 1.0, 1.0), (1.0, 0.5, 0.25, 0.25), (1.0, 1.0, 1, 1)])
def test_a_sure_net_that_is_wrong_cannot_blow_up_the_search(
    start: Callable[..., Scripted], unit: tuple[float, ...]
) -> None:
    """It says with each frame that the target fills the crop, or flees: neither the box nor the
    crop may grow without bound."""
    run = start()
    for _ in range(40):
        run.stamp += DT
        look = run.track.look(FRAME, run.stamp)
        assert look.crop.side < 40 * 640
        result = run.track.learn(FRAME, said(np.array(unit), np.full(4, 1e-5), SEEN), look.memory)
    assert result.box.w <= 2 * 640
    assert result.box.h <= 2 * 480
    assert -640 <= result.box.cx <= 2 * 640
    assert -480 <= result.box.cy <= 2 * 480


# -- templates -----------------------------------------------------------------------------------


def test_the_second_template_is_refreshed_when_due_and_sure(
    start: Callable[..., Scripted],
) -> None:
    run = start(template_every=10, template_score=0.8)
    first = run.track._templates[0]
    for _ in range(9):
        run.tell(SEEN)
    assert len(run.track._templates) == 1
    run.tell(0.7)  # due, but not sure enough
    assert len(run.track._templates) == 1
    run.tell(SEEN)
    second = run.track._templates[1]
    for _ in range(9):
        run.tell(SEEN)
        assert run.track._templates[1] is second
    run.tell(SEEN)
    assert run.track._templates[0] is first
    assert len(run.track._templates) == 2
    assert run.track._templates[1] is not second


def test_a_lost_track_takes_no_template(start: Callable[..., Scripted]) -> None:
    run = start(template_every=10)
    run.lose()
    for _ in range(30):
        run.tell(UNSEEN)
    assert len(run.track._templates) == 1


def test_by_default_the_tenth_sure_frame_gives_a_second_template(
    start: Callable[..., Scripted],
) -> None:
    run = start()
    for number in range(1, 31):
        run.tell(SEEN)
        assert len(run.track._templates) == (1 if number < 10 else 2)


def test_without_an_interval_the_first_template_stays_alone(start: Callable[..., Scripted]) -> None:
    run = start(template_every=0)
    for _ in range(30):
        run.tell(SEEN)
    assert len(run.track._templates) == 1


# -- the tracker on a real net -------------------------------------------------------------------


@pytest.mark.parametrize("scan", ["regional", "joint"])
def test_a_real_net_runs_through_every_state(
    make_weights: Callable[..., Weights], frames: list[Image], scan: str
) -> None:
    """The thresholds decide what a net of random weights is taken for."""
    network = TorchNetwork(make_weights(scan=scan))
    frames = [np.tile(frame, (4, 4, 1)) for frame in frames[:4]]  # room to wander in
    box = Box(300, 200, 30, 24)
    for config, wanted in (
        (TrackerConfig(confident=0.0, doubtful=0.0, template_every=2, template_score=0), TRACKING),
        (TrackerConfig(confident=1.0, doubtful=0.0, gate=1.0), UNCERTAIN),
        (TrackerConfig(confident=1.0, doubtful=1.0, patience=0.0), LOST),
    ):
        tracker = OnlineTracker(network, config)
        tracker.init(frames[0], box, 0.0)
        for k, frame in enumerate(frames[1:], start=1):
            result = tracker.update(frame, k * DT)
            assert result.stamp == k * DT
            assert np.isfinite(result.box).all()
            assert_covariance(result.covariance)
            assert result.state is wanted


def test_the_same_frames_give_the_same_results(network: Network, frames: list[Image]) -> None:
    runs = []
    for _ in range(2):
        tracker = OnlineTracker(network)
        tracker.init(frames[0], Box(50, 40, 30, 24), 0.0)
        runs.append([tracker.update(f, k * DT).box for k, f in enumerate(frames[1:], start=1)])
    assert runs[0] == runs[1]


def test_a_refused_box_keeps_the_track(network: Network, frames: list[Image]) -> None:
    tracker = OnlineTracker(network)
    with pytest.raises(ValueError, match="not finite"):
        tracker.init(frames[0], Box(math.nan, 40, 30, 24), 0.0)
    with pytest.raises(RuntimeError, match=r"needs an init\(\)"):
        tracker.update(frames[0], 0.0)
    tracker.init(frames[0], Box(50, 40, 30, 24), 0.0)
    with pytest.raises(ValueError, match="outside"):
        tracker.init(frames[0], Box(500, 40, 30, 24), 0.0)
    assert tracker.update(frames[1], DT).stamp == DT


def test_a_new_init_forgets_the_track_before(network: Network, frames: list[Image]) -> None:
    used, fresh = OnlineTracker(network), OnlineTracker(network)
    used.init(frames[0], Box(90, 60, 20, 20), 0.0)
    used.update(frames[1], DT)
    results = []
    for tracker in (used, fresh):
        tracker.init(frames[2], Box(50, 40, 30, 24), 0.5)
        results.append(tracker.update(frames[3], 0.6))
    assert results[0].box == results[1].box
    np.testing.assert_array_equal(results[0].covariance, results[1].covariance)


def test_frames_are_left_alone(network: Network, frames: list[Image]) -> None:
    before = [frame.copy() for frame in frames]
    tracker = OnlineTracker(network)
    tracker.init(frames[0], Box(140, 100, 30, 24), 0.0)  # reaches over the edge
    for k, frame in enumerate(frames[1:], start=1):
        tracker.update(frame, k * DT)
    for frame, copy in zip(frames, before, strict=True):
        np.testing.assert_array_equal(frame, copy)


def test_learning_needs_a_look(network: Network) -> None:
    track = Track(network, FRAME, BOX, 0.0, TrackerConfig())
    with pytest.raises(RuntimeError, match=r"needs a look\(\)"):
        track.learn(FRAME, said(np.zeros(4), np.ones(4), 0.5), track._memory)


def test_a_result_is_a_frozen_value(network: Network) -> None:
    result = OnlineTracker(network).init(FRAME, BOX, 0.0)
    with pytest.raises(FrozenInstanceError):
        result.score = 0.5  # type: ignore[misc]
