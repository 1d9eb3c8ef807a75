"""Following targets from frame to frame: prediction, search, gating, states.

A `Track` is one target's state machine. It asks for one search crop a frame (`look`) and is told
what the net found there (`learn`), so that many tracks share one call of the net. `OnlineTracker`
runs one track, `MultiTracker` (multi.py) several.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

import numpy as np

from vil_tracker_core.geometry import (
    Box,
    Crop,
    FloatArray,
    Image,
    clip_to_frame,
    crop_motion,
    iou,
    share_inside,
    validate_box,
)
from vil_tracker_core.model.film import ALIKE
from vil_tracker_core.model.tracker import Memory
from vil_tracker_core.tracking import kalman
from vil_tracker_core.tracking.camera import scene_shift, thinned
from vil_tracker_core.tracking.kalman import KalmanConfig, KalmanState
from vil_tracker_core.tracking.network import Found, Network, teach, told
from vil_tracker_core.tracking.recognition import Recognition
from vil_tracker_core.tracking.uncertainty import Uncertainty


class TrackState(enum.IntEnum):
    """How much the box may be believed. The numbers are those of Track.msg."""

    TRACKING = 1
    UNCERTAIN = 2
    LOST = 3


@dataclass(frozen=True)
class TrackerConfig:
    """Thresholds of the state machine.

    Attributes:
        confident: score from which a frame counts as seeing the target.
        doubtful: score below which a frame counts as not seeing it.
        patience: seconds without seeing the target until the track is lost.
        gate: probability that a right measurement passes the chi-squared gate.
        widest: bound of the search crop's growth while lost, as a factor.
        widening: growth of the search crop a second while lost, as a factor. Once it is at its
            bound, or at once where the target's place in the scene is not known any more, every
            second look goes elsewhere in the picture, see `Track._elsewhere`.
        elsewhere: score from which a target seen there, or outside of where it can be, is believed.
        template_every: frames between refreshes of the second template; 0 for never.
        template_score: score from which a frame may become the second template.
        size_anchor: share of the first box's size in the search crop's, see `Track.look`.
        alike: response of what the track has learned of its target, see recognition.py, from which
            a score counts in full; 0 for scores that do not depend on it.
        learning: share of each new frame in what it has learned lately; 0 for the first frame
            only.
        kalman: noise of the motion model.
    """

    confident: float = 0.45
    doubtful: float = 0.2
    patience: float = 0.5
    gate: float = 0.999
    widest: float = 2.0
    widening: float = 2.0
    elsewhere: float = 0.48
    template_every: int = 10
    template_score: float = 0.5
    size_anchor: float = 0.3
    alike: float = 0.45
    learning: float = 0.08
    kalman: KalmanConfig = field(default_factory=KalmanConfig)


@dataclass(frozen=True)
class TrackResult:
    """What is known of a target in one frame.

    Attributes:
        box: in frame pixels, cut off at the picture's edge; while lost, where it is believed to be,
            and whole where that is outside the picture.
        score: 0..1, the net's confidence that the target is in the search region, lowered where
            what it found there does not look like this target; 0 where it cannot be it.
        covariance: (4, 4) of (cx, cy, w, h) of the whole box, px^2, of errors distributed as
            regions.py says.
        state: whether to believe it.
        stamp: of the frame, seconds.
        reason: why the state is not TRACKING; empty otherwise.
    """

    box: Box
    score: float
    covariance: FloatArray = field(repr=False)
    state: TrackState
    stamp: float
    reason: str = ""


@dataclass(frozen=True)
class Look:
    """A track's request for one frame: the crop to search and what the net needs beside it."""

    crop: Crop
    image: Image
    memory: Memory
    motion: tuple[float, float, float]
    trust: float


ANCHORED = 2.0
"""Greatest factor between the search crop's side and what the target's present size asks for."""
SWEPT = 1.5
"""Side of the crops that search elsewhere in the picture, as a factor."""
STRIDE = 0.7
"""Greatest distance between the middles of two of them, as a share of their side."""
WHOLE = 0.95
"""Share of the target in the picture from which it counts as seen whole."""
LEFT = 0.5
"""Share of it below which it has left the picture, whatever is seen there with less than a sure
score; or the share that was drawn, where that is less."""
RIM = 0.02
"""Distance to the picture's edge, as a share of the longer side, within which a box is cut off."""
ASTRAY, ASTRAY_SPEED = 1.5, 3.0
"""How far from its place in the scene a lost target is expected, in extents, and how much farther
a second."""
LENIENT = 0.75
"""Share of `TrackerConfig.alike` asked of a lost target, which is looked for in wider crops:
the net's features are not the same at another scale."""
SCHOOLING = 5
"""Frames to learn from until what was learned counts: of the first one alone it is too narrow."""
PROVEN = 2.0
"""Seconds that a target which was found again is followed until it is learned from: it may be
another one, which must not be what is looked for when it is lost again."""
UNLIKE = 0.8
"""Likeness below which a reason tells of it."""
LEAST_VARIANCE = 0.25
"""px^2: nothing is measured better than by half a pixel."""
LEAST_DT = 0.005
"""Seconds; over less the scene's speed is not measured, but over that and the next frame's."""
MAX_DT = 1.0
"""Seconds; a longer pause between frames is treated as this long."""


def _size(frame: Image) -> tuple[int, int]:
    return frame.shape[1], frame.shape[0]


def _completed_span(
    start: float, length: float, whole: float, low: float, high: float
) -> tuple[float, float]:
    """Start and length of one side of a box, stretched to ``whole`` beyond ``low`` or ``high``
    where one of its ends, and one only, lies there."""
    end = start + length
    if start < low and end < high:
        start = min(start, end - whole)
    elif end > high and start > low:
        end = max(end, start + whole)
    return start, end - start


def _validate_stamp(stamp: float) -> None:
    if not math.isfinite(stamp):
        raise ValueError(f"the frame's stamp {stamp} is not a number of seconds")


class Track:
    """One target from its first box on.

    Args:
        network: the net; only its sizes and `start` are used here.
        frame: (H, W, 3) BGR uint8 image on which the box was drawn.
        box: the target in frame pixels.
        stamp: of the frame, seconds.
        config: thresholds.

    Raises:
        ValueError: the box is not usable on this frame, or the stamp is not finite.
    """

    def __init__(
        self, network: Network, frame: Image, box: Box, stamp: float, config: TrackerConfig
    ) -> None:
        self.config, self._network = config, network
        model = network.config
        box = validate_box(box, _size(frame))
        _validate_stamp(stamp)
        self._frame_size = _size(frame)
        self._stamp = stamp
        self._filter: KalmanState = kalman.start(box, config.kalman)
        template = Crop.around(box, model.template_factor, model.template_size).cut(frame)
        self._templates = [template]
        self._memory = network.start(self._templates)
        self._first_extent = math.sqrt(box.w * box.h)
        self._left, self._recognition = self._first_look(frame, box)
        self._lessons = 0  # frames that it was learned from
        self._followed = math.inf  # seconds since it was found again
        self._least_share = min(LEFT, share_inside(box, self._frame_size))
        self._thinned = thinned(frame)
        self._scene: FloatArray | None = None  # px/s of the scene, while the filter's are in it
        self._crop: Crop | None = None  # which the memory belongs to
        self._looked: Crop | None = None  # the last one; another one only where it was elsewhere
        self._sweep = 0  # looks of a lost track that may go elsewhere
        self._far = False  # whether the last look was elsewhere in the picture
        self._unseen = 0.0  # seconds since the target was last seen
        self._placed = True  # whether its place in the scene is known since
        self._seen = box  # where it was last seen
        self._candidate: Box | None = None  # while lost: where it may have come back
        self._sights, self._needed = 0, 0  # confident looks at it in a row: had, asked for
        self._reset = ""  # why all motion was forgotten, until the target is seen again
        self._since_template = 0
        self._noise: FloatArray = np.zeros((4, 4))  # covariance of the last measurement
        self._age = 0.0  # seconds since the first box
        self.result = TrackResult(box, 1.0, self._published(), TrackState.TRACKING, stamp)

    @property
    def lost(self) -> bool:
        return self.result.state is TrackState.LOST

    def look(self, frame: Image, stamp: float) -> Look:
        """Moves the track to a new frame's time and says where to search in it.

        A net sees a size relative to its crop, and where it is unsure, it takes the usual share
        of the crop for the target's. A crop that follows the box alone then makes an error grow
        without bound; a share of the first box's size pulls it back.
        """
        model, config = self._network.config, self.config
        reset = self._continuity(frame, stamp)
        if reset:
            self._restart(reset, frame)
        passed = max(stamp - self._stamp, 0.0)
        dt = min(passed, MAX_DT)
        self._stamp = stamp
        last = self._filter.box
        self._relate_to_scene(frame, dt)
        self._unseen += dt
        self._age += passed
        self._followed += passed
        if self.lost:
            self._filter = self._held(dt)
        else:
            self._filter = kalman.predict(self._filter, dt, config.kalman)
        around, growth, roams = self._filter.box, 1.0, False
        if self._candidate is not None:
            around = self._candidate
        elif self.lost:
            x, y = np.clip(self._filter.mean[:2], 0, self._frame_size).tolist()
            around = Box.from_cxcywh(x, y, around.w, around.h)
            growth += config.widening * max(self._unseen - config.patience, 0.0)
            roams = growth >= config.widest or not self._placed
        anchor = self._first_extent / math.sqrt(around.w * around.h)
        anchor = min(max(anchor**config.size_anchor, 1 / ANCHORED), ANCHORED)
        factor = model.search_factor * anchor
        self._sweep = self._sweep + roams if self.lost else 0
        self._far = roams and self._sweep % 2 == 0
        if self._far:
            crop = self._elsewhere(factor * SWEPT)
        else:
            crop = Crop.around(around, factor * min(growth, config.widest), model.search_size)
        remembered = self._crop or crop
        motion = crop_motion(remembered, crop)
        memory = told(self._memory, None if self.lost else remembered.to_unit(last))
        self._looked = crop
        return Look(crop, crop.cut(frame), memory, motion, 0.0 if self.lost else 1.0)

    def _relate_to_scene(self, frame: Image, dt: float) -> None:
        """Keeps a target that is not seen, or not whole, at its place in the scene, which moves in
        the picture as the camera turns. Unseen, it is taken to stand still there.

        So it is known when the camera has left it, whatever the net makes of the rest of the
        picture, and where it is to be expected when the camera turns back. A target that is seen
        whole needs none of this: its speed in the picture is measured in every frame.
        """
        if dt < LEAST_DT:
            return
        before, self._thinned = self._thinned, thinned(frame)
        mean = self._filter.mean.copy()
        unseen = self.lost or self._unseen > 0
        ahead = kalman.predict(self._filter, dt, self.config.kalman).box
        if not unseen and share_inside(ahead, self._frame_size) >= WHOLE:
            mean[4:6] += 0.0 if self._scene is None else self._scene
            self._scene = None
        else:
            shift = scene_shift(before, self._thinned)
            self._placed = self._placed and not (unseen and shift is None)
            moved = np.zeros(2) if shift is None else shift * max(self._frame_size)
            mean[:2] += moved
            if unseen:
                mean[4:6] = 0
            elif self._scene is None:
                mean[4:6] -= moved / dt
            self._scene = moved / dt
            if self._candidate is not None:
                x, y, w, h = self._candidate
                self._candidate = Box(x + float(moved[0]), y + float(moved[1]), w, h)
        self._filter = KalmanState(mean, self._filter.covariance)

    def _elsewhere(self, factor: float) -> Crop:
        """The next of the crops that cover the picture, from where the target was lost outwards,
        each `factor` times its size, and then again."""
        last, size = self._filter.box, self._network.config.search_size
        side = factor * math.sqrt(last.w * last.h)
        across, down = (
            length * (np.arange(count) + 0.5) / count
            for length in self._frame_size
            for count in [math.ceil(length / (STRIDE * side))]
        )
        middles = np.stack(np.meshgrid(across, down), axis=-1).reshape(-1, 2)
        far = np.hypot(middles[:, 0] - last.cx, middles[:, 1] - last.cy)
        nth = (self._sweep // 2 - 1) % len(middles)
        x, y = middles[np.argsort(far, kind="stable")[nth]].tolist()
        return Crop.centred(x, y, side, size)

    def learn(self, frame: Image, found: Found, memory: Memory) -> TrackResult:
        """Takes in what the net found in the crop of the last `look`."""
        if self._looked is None:
            raise RuntimeError("learn() needs a look() before it")
        side, rate = float(self._looked.side), self.config.learning
        box = self._looked.to_frame(found.unit)
        noise = np.diag(np.maximum(found.variance * side**2, LEAST_VARIANCE))
        likeness = self._likeness(found)
        problem = self._implausible(found, box, likeness)
        if not problem and not self._far:
            self._memory, self._crop = memory, self._looked
        score = 0.0 if problem else found.score * likeness
        if self.lost:
            state, reason = self._search_again(box, score, noise)
        else:
            state, reason = self._follow(box, score, noise, problem)
            proven = self._followed >= PROVEN
            if state is TrackState.TRACKING and self._whole and proven:
                unit = self._looked.to_unit(self._filter.box)
                self._recognition = self._recognition.learned(found.seen, unit, rate)
                self._lessons += 1
            elif reason and not problem and likeness < UNLIKE:
                reason += "; it does not look like the target"
        self.result = TrackResult(
            self._shown(), score, self._published(), state, self._stamp, reason
        )
        self._refresh_template(frame)
        return self.result

    def _first_look(self, frame: Image, box: Box) -> tuple[FloatArray, Recognition]:
        """Tells the net how the box that was drawn differs from its own answer, on the one frame
        where both are known, and learns what the target looks like.

        What it takes for the whole of the target may be more or less than the box (the man for his
        face), and its middle may be another.

        Returns:
            (4,) what is left of the error after that, in units of (w, h, w, h); what is learned.
        """
        model = self._network.config
        crop = Crop.around(box, model.search_factor, model.search_size)
        image, still = crop.cut(frame), crop_motion(crop, crop)

        def answer() -> Found:
            (found,), _ = self._network.step([image], [self._memory], [still], [0.0])
            return found

        drawn = crop.to_unit(box)
        self._memory = teach(self._memory, answer().unit, drawn)
        found = answer()
        recognition, left = Recognition.begin(found.seen, drawn), np.zeros(4)
        seen = crop.to_frame(found.unit)
        if float(iou(seen, box)) > ALIKE:
            left[:2] = (seen.cx - box.cx) / box.w, (seen.cy - box.cy) / box.h
            left[2:] = seen.w / box.w - 1, seen.h / box.h - 1
        return left, recognition

    def _likeness(self, found: Found) -> float:
        """0..1, how far what the net found looks like this target and not only like its kind."""
        enough = self.config.alike * (LENIENT if self.lost else 1.0)
        if not enough or self._lessons < SCHOOLING or not np.isfinite(found.unit).all():
            return 1.0
        response = self._recognition.response(found.seen, found.unit)
        return min(max(response / enough, 0.0), 1.0) ** 2

    def uncertainty(self) -> Uncertainty:
        """What is known of the box's errors. As long as the track lasts what the first frame showed
        of the difference between the net's idea of the target and the box that was drawn, and how
        exactly a box is drawn at all."""
        box = self._filter.box
        left = self._left * np.array([box.w, box.h, box.w, box.h])
        drawn = self.config.kalman.start_box**2 * box.w * box.h
        filtered = self._filter.box_covariance + self._noise
        return Uncertainty(filtered, left**2 + drawn, np.array(self._age))

    def _published(self) -> FloatArray:
        return self.uncertainty().covariance(self._network.calibration)

    def _shown(self) -> Box:
        """What of the box is in the picture; all of it where that is nothing."""
        return self._filter.box if self._outside else self._inside

    @property
    def _inside(self) -> Box:
        return clip_to_frame(self._filter.box, self._frame_size)

    @property
    def _whole(self) -> bool:
        return share_inside(self._filter.box, self._frame_size) >= WHOLE

    @property
    def _outside(self) -> bool:
        """Whether less than a pixel of the box is in the picture."""
        return min(self._inside.w, self._inside.h) < 1

    def _implausible(self, found: Found, box: Box, likeness: float) -> str:
        """Why the net's answer cannot be the target; such a frame counts as not seeing it, with a
        score of 0, and does not change the memory. Else a net that errs drags box and crop along
        without bound."""
        answer = [*found.unit, *found.variance, found.score]
        if not (np.isfinite(answer).all() and np.isfinite(found.seen).all()):
            return "the net's answer is not finite"
        try:
            validate_box(box, self._frame_size)
        except ValueError as error:
            return f"found {error}"
        share = share_inside(self._filter.box, self._frame_size)
        unsure = found.score * likeness < self.config.elsewhere
        if not self.lost and share < self._least_share and unsure:
            return "the target has left the picture"
        return ""

    def _follow(
        self, box: Box, score: float, noise: FloatArray, problem: str
    ) -> tuple[TrackState, str]:
        """A frame of a track that is not lost: update, or coast."""
        config = self.config
        gate = kalman.gate_threshold(config.gate)
        if not problem and not self._whole:
            box = self._completed(box)
        measured = np.array([box.cx, box.cy, box.w, box.h])
        # what is another error in each frame; the whole of the noise is for what is published
        own = config.kalman.independent * np.diag(noise)
        fresh = np.diag(np.maximum(own, LEAST_VARIANCE))
        distance = 0.0 if problem else kalman.innovation(self._filter, measured, fresh)[2]
        why = problem
        if not why and score < config.doubtful:
            why = f"score {score:.2f} is below {config.doubtful:g}"
        elif distance > gate and score < config.confident:
            why = f"score {score:.2f} and a jump of {math.sqrt(distance):.1f} sigma"
        if why:
            self._coast()
            if self._unseen > config.patience or self._outside:
                return TrackState.LOST, f"not seen for {self._unseen:.2f} s: {why}"
            return TrackState.UNCERTAIN, why
        if distance > gate:
            # sure of it, so the target manoeuvres: widen the prediction until it allows for that
            spread = self._filter.covariance * (distance / gate)
            self._filter = KalmanState(self._filter.mean, spread)
        self._filter = kalman.update(self._filter, measured, fresh)
        self._noise = noise
        self._seen = self._filter.box
        self._unseen, self._placed = 0.0, True
        if score < config.confident:
            return TrackState.UNCERTAIN, f"score {score:.2f} is below {config.confident:g}"
        return TrackState.TRACKING, ""

    def _completed(self, box: Box) -> Box:
        """A box that the picture's edge cuts off, made as wide and high as the target is known to
        be."""
        (width, height), whole = self._frame_size, self._filter.box
        rim = RIM * max(self._frame_size)
        x, w = _completed_span(box.x, box.w, whole.w, rim, width - rim)
        y, h = _completed_span(box.y, box.h, whole.h, rim, height - rim)
        return Box(x, y, w, h)

    def _coast(self) -> None:
        """Unseen, the box keeps the size that it was last seen with: the search crop is a multiple
        of it, and must not shrink to nothing."""
        mean = self._filter.mean.copy()
        mean[2:4] = self._seen.w, self._seen.h
        mean[6:8] = 0.0
        self._filter = KalmanState(mean, self._filter.covariance)

    def _search_again(self, box: Box, score: float, noise: FloatArray) -> tuple[TrackState, str]:
        """A frame of a lost track: found again after two confident frames in a row; elsewhere in
        the picture or far from its place in the scene, where there is more to be mistaken for it,
        after three."""
        config = self.config
        reason = self._reset or f"not seen for {self._unseen:.2f} s"
        here, extent = self._filter.box, math.sqrt(self._filter.box.w * self._filter.box.h)
        astray = ASTRAY + ASTRAY_SPEED * max(self._unseen - config.patience, 0.0)
        away = math.hypot(box.cx - here.cx, box.cy - here.cy) > astray * extent
        far = self._far or (away and not self._reset)
        if score < (config.elsewhere if far else config.confident):
            self._candidate = None
            return TrackState.LOST, reason
        if self._candidate is None:
            self._sights, self._needed = 0, 3 if far else 2
        elif float(iou(box, self._candidate)) < 0.2:
            self._sights = 0
        self._sights += 1
        self._candidate = box
        if self._sights < self._needed:
            return TrackState.LOST, f"{reason}; seen once again"
        self._candidate, self._reset = None, ""
        self._followed = 0.0
        fresh = kalman.start(box, self.config.kalman)
        fresh.covariance[:4, :4] = noise
        self._noise = noise
        self._filter = fresh
        self._seen = box
        self._unseen, self._placed = 0.0, True
        return TrackState.TRACKING, ""

    def _held(self, dt: float) -> KalmanState:
        """While lost: the box stands still in the scene, at most the picture's own size beyond its
        edge, and its covariance grows to a bound."""
        still = self._filter.mean.copy()
        still[4:] = 0
        size = np.array(self._frame_size)
        still[:2] = np.clip(still[:2], -size, 2 * size)
        grown = kalman.predict(
            KalmanState(still, self._filter.covariance), dt, self.config.kalman
        ).covariance
        bound = float(max(self._frame_size)) ** 2
        excess = np.sqrt(np.maximum(np.diag(grown) / bound, 1.0))
        return KalmanState(still, grown / np.outer(excess, excess))

    def _continuity(self, frame: Image, stamp: float) -> str:
        """Why this frame does not follow the last one; empty where it does."""
        if _size(frame) != self._frame_size:
            old, new = self._frame_size, _size(frame)
            return f"the image changed from {old[0]}x{old[1]} to {new[0]}x{new[1]}"
        if stamp < self._stamp:
            return f"the stamps jumped back by {self._stamp - stamp:.3f} s"
        return ""

    def _restart(self, reason: str, frame: Image) -> None:
        """Forgets all motion and temporal context; the templates stay. The track is lost until
        the target is seen again, first where it was last (scaled to a new image size)."""
        scale = np.array(_size(frame)) / np.array(self._frame_size)
        last = self._filter.box
        box = Box(last.x * scale[0], last.y * scale[1], last.w * scale[0], last.h * scale[1])
        self._frame_size = _size(frame)
        self._first_extent *= math.sqrt(scale[0] * scale[1])
        self._filter = kalman.start(box, self.config.kalman)
        fresh = self._network.start(self._templates)
        self._memory = fresh._replace(deltas=self._memory.deltas)
        self._crop, self._looked = None, None
        self._thinned, self._scene = thinned(frame), None
        self._candidate, self._reset = None, reason
        self._unseen = self.config.patience
        self.result = TrackResult(box, 0.0, self._published(), TrackState.LOST, self._stamp, reason)

    def _refresh_template(self, frame: Image) -> None:
        """Renews the second template where that is due and safe; the first is never given up."""
        config, model = self.config, self._network.config
        self._since_template += 1
        possible = config.template_every > 0 and self._network.max_templates > 1
        due = self._since_template >= config.template_every
        sure = self.result.state is TrackState.TRACKING
        if not possible or not due or not sure or self.result.score < config.template_score:
            return
        crop = Crop.around(self._filter.box, model.template_factor, model.template_size)
        self._templates = [self._templates[0], crop.cut(frame)]
        self._memory = self._network.renew(self._memory, self._templates)
        self._since_template = 0


class OnlineTracker:
    """Follows one target.

        tracker = OnlineTracker(open_network("vil_nano"))
        tracker.init(frame, Box(x, y, w, h), stamp)
        result = tracker.update(next_frame, next_stamp)

    Time comes from the stamps (seconds) alone.
    """

    def __init__(self, network: Network, config: TrackerConfig | None = None) -> None:
        self.network, self.config = network, config or TrackerConfig()
        self._track: Track | None = None

    def init(self, frame: Image, box: Box, stamp: float) -> TrackResult:
        """Starts on a box; raises ValueError with a reason where the box is not usable."""
        self._track = Track(self.network, frame, box, stamp, self.config)
        return self._track.result

    def update(self, frame: Image, stamp: float) -> TrackResult:
        """The target in the next frame; raises RuntimeError before `init`."""
        if self._track is None:
            raise RuntimeError("update() needs an init() before it")
        return step_tracks(self.network, [self._track], frame, stamp)[0]


def step_tracks(
    network: Network, tracks: list[Track], frame: Image, stamp: float
) -> list[TrackResult]:
    """Moves all tracks to a frame by one call of the net."""
    _validate_stamp(stamp)
    if not tracks:
        return []
    looks = [track.look(frame, stamp) for track in tracks]
    found, memories = network.step(
        [look.image for look in looks],
        [look.memory for look in looks],
        [look.motion for look in looks],
        [look.trust for look in looks],
    )
    return [
        track.learn(frame, one, memory)
        for track, one, memory in zip(tracks, found, memories, strict=True)
    ]
