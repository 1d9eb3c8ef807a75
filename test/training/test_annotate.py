"""A teacher's tracks: where its ways agree they are kept, and they are where the target is."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest

from vil_tracker_core.data.sequence import DataError, read_folder, write_folder
from vil_tracker_core.data.sequence import Sequence as Video
from vil_tracker_core.evaluation.bag_sequence import read_bag
from vil_tracker_core.geometry import Box, Image, iou
from vil_tracker_core.training.annotate import (
    CROPS,
    AnnotateConfig,
    Annotated,
    annotate,
    follow,
    place,
    settle,
    try_track,
)
from vil_tracker_core.training.teachers import FearXs, Response

ROOT = Path(__file__).parents[2]
TEACHERS = ROOT.parent / "shared" / "teachers"
CLIP = ROOT / "clips" / "real"
FRAMES = 20
CONFIG = AnnotateConfig(tracks=2, tries=30, frames=15, least_frames=8)


def truth(index: int) -> Box:
    return Box(40.0 + 4 * index, 60.0 + 2 * index, 30, 24)


def frame_of(index: int, shown: bool = True) -> Image:
    """A red rectangle that moves over grey."""
    frame = np.full((160, 200, 3), 90, np.uint8)
    x, y, w, h = (int(v) for v in truth(index))
    if shown:
        frame[y : y + h, x : x + w] = (20, 20, 230)
    return frame


@dataclass
class Red:
    """A teacher that knows one thing: what is red. ``drift`` px are added to the right."""

    drift: float = 0.0
    channels: int = 1

    @staticmethod
    def _red(crop: Image) -> Image:
        return np.asarray((crop[0].astype(int) - crop[1] > 60).astype(np.uint8))

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        raise NotImplementedError("annotating asks for answers only")

    def respond(self, template: Image, search: Image, aspect: float, grid: int) -> Response:
        score, boxes = np.zeros((grid, grid), np.float32), np.zeros((4, grid, grid), np.float32)
        red, side = self._red(search), search.shape[1]
        if self._red(template).mean() > 0.05 and red.any():
            x, y, w, h = cv2.boundingRect(red)
            unit = np.array([x + w / 2 + self.drift * side / 120, y + h / 2, w, h]) / side
            column, row = (min(int(at * grid), grid - 1) for at in unit[:2])
            score[row, column] = 0.9
            boxes[:, row, column] = unit
        return Response(score, boxes)


def test_settles_on_the_thing_that_is_there() -> None:
    frame = frame_of(3)
    found = settle(Red(), frame, Box(48, 60, 40, 40), CONFIG)
    assert found is not None
    assert float(iou(found, truth(3))) > 0.85


@pytest.mark.parametrize(
    "place", [Box(150, 10, 30, 30), Box(5, 120, 20, 30)], ids=["beside", "far away"]
)
def test_settles_on_nothing_where_nothing_is(place: Box) -> None:
    assert settle(Red(), frame_of(0), place, CONFIG) is None


def test_a_thing_cut_by_the_border_is_left_alone() -> None:
    frame = np.roll(frame_of(0), -50, axis=1)
    frame[:, -60:] = 90  # what np.roll brought back on the other side
    assert settle(Red(drift=-9), frame, Box(0, 60, 22, 24), CONFIG) is None


def test_places_are_mostly_where_something_moves() -> None:
    """Where nothing moves, every place is as good as another."""

    def share(later: int) -> float:
        """Of places that hold a good part of the target, now or later."""
        rng = np.random.default_rng(0)
        boxes = np.array([place(rng, frame_of(3), frame_of(later)) for _ in range(300)])
        there = np.array([truth(3), truth(6)])
        return float(np.mean([iou(boxes, other) > 0.1 for other in there]))

    assert share(6) > 2 * share(3)


def test_follows_until_it_is_gone() -> None:
    boxes = follow(Red(), lambda i: frame_of(i, shown=i < 9), list(range(FRAMES)), truth(0), CONFIG)
    assert len(boxes) == 9
    overlaps = iou(np.array(boxes), np.array([truth(i) for i in range(9)]))
    assert overlaps.min() > 0.8


def test_tracks_are_the_truth_in_the_video_s_order() -> None:
    rng = np.random.default_rng(0)
    tries = [try_track(Red(), frame_of, FRAMES, rng, CONFIG) for _ in range(60)]
    tracks = [t for t in tries if isinstance(t, Annotated)]
    assert len(tracks) > 3
    assert len({t.frames[0] for t in tracks}) > 2  # from several starts, and both ways
    for track in tracks:
        assert track.frames == list(range(track.frames[0], track.frames[0] + len(track.frames)))
        overlaps = iou(track.boxes, np.array([truth(i) for i in track.frames]))
        assert overlaps.min() > 0.75
    assert {t for t in tries if isinstance(t, str)} <= {"no thing there", "too near the end"}


def test_ways_that_differ_are_dropped() -> None:
    """Here the teacher's error follows the direction of time: right forwards, left backwards."""

    @dataclass
    class Late(Red):
        seen: int = 0

        def respond(self, template: Image, search: Image, aspect: float, grid: int) -> Response:
            self.seen += 1
            self.drift = 0.0 if self.seen <= 3 else (25.0 if self.seen < 3 + 15 else -25.0)
            return super().respond(template, search, aspect, grid)

    ends = set()
    for seed in range(40):
        end = try_track(Late(), frame_of, FRAMES, np.random.default_rng(seed), CONFIG)
        ends.add(end if isinstance(end, str) else "kept")
    assert "the two ways differ" in ends
    assert "kept" not in ends


def test_what_stands_still_is_dropped() -> None:
    """It trembles by a pixel, and is followed well; but there is nothing to learn from it."""
    ends = set()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        end = try_track(Red(), lambda i: np.roll(frame_of(0), i % 2, axis=1), FRAMES, rng, CONFIG)
        ends.add(end if isinstance(end, str) else "kept")
    assert "stands still" in ends
    assert "kept" not in ends


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two videos without usable truth."""
    for name in ("one", "two"):
        boxes = np.full((FRAMES, 4), np.nan)
        video = Video(name, boxes, np.arange(FRAMES) / 30, frame_of)
        write_folder(video, tmp_path / "videos" / name)
        (tmp_path / "videos" / name / "groundtruth_rect.txt").unlink()
    return tmp_path / "videos"


def test_writes_sequences_to_train_on(videos: Path, tmp_path: Path) -> None:
    ends = annotate(videos, tmp_path / "a", Red(), CONFIG, seed=1)
    written = sorted((tmp_path / "a").iterdir())
    assert [path.name for path in written] == ["one_t0", "one_t1", "two_t0", "two_t1"]
    assert ends["kept"] == 4
    for path in written:
        sequence = read_folder(path)
        first = int((path / "img" / "00000001.jpg").resolve().stem) - 1
        assert sequence.visible.all()
        assert len(sequence) >= CONFIG.least_frames
        assert np.array_equal(
            sequence.load(0),
            cv2.imread(str(videos / path.name[:3] / "img" / f"{first + 1:08d}.jpg")),
        )
        overlaps = iou(sequence.boxes, np.array([truth(first + i) for i in range(len(sequence))]))
        assert overlaps.min() > 0.7
        assert sequence.origin == f"Red's boxes on {path.name[:3]}"


def test_a_seed_gives_the_same_tracks(videos: Path, tmp_path: Path) -> None:
    """And a video's own, whatever else is annotated."""
    annotate(videos, tmp_path / "a", Red(), CONFIG, seed=1)
    annotate(videos, tmp_path / "b", Red(), CONFIG, seed=1, without=("one",))
    annotate(videos, tmp_path / "c", Red(), CONFIG, seed=2)
    texts = {
        root: [p.read_text() for p in sorted((tmp_path / root).glob("two_*/*.txt"))]
        for root in "abc"
    }
    assert texts["a"] == texts["b"] != texts["c"]
    assert not list((tmp_path / "b").glob("one_*"))


def test_faults_are_told_before_any_work(videos: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no three to leave out"):
        annotate(videos, tmp_path / "a", Red(), CONFIG, without=("three",))
    with pytest.raises(DataError, match="exists already"):
        annotate(videos, videos, Red(), CONFIG)
    with pytest.raises(DataError, match="is not a folder"):
        annotate(tmp_path / "none", tmp_path / "a", Red(), CONFIG)
    assert not (tmp_path / "a").exists()


@pytest.mark.skipif(not TEACHERS.is_dir(), reason="needs FEAR-XS in ../shared/teachers")
def test_fear_xs_tracks_a_walker() -> None:
    clip = read_bag(CLIP).sequence
    teacher = FearXs(TEACHERS, CROPS)
    box = settle(teacher, clip.load(0), Box(*clip.boxes[0]), CONFIG)
    assert box is not None
    assert float(iou(box, clip.boxes[0])) > 0.5
    boxes = follow(teacher, clip.load, list(range(16)), box, CONFIG)
    assert len(boxes) == 16
    assert iou(np.array(boxes), clip.boxes[:16]).min() > 0.5


@pytest.mark.skipif(not TEACHERS.is_dir(), reason="needs FEAR-XS in ../shared/teachers")
def test_the_command(tmp_path: Path) -> None:
    clip = read_bag(CLIP).sequence
    short = Video("walk", clip.boxes[:50], clip.stamps[:50], clip.load)
    write_folder(short, tmp_path / "videos" / "walk")
    arguments = ["annotate", "videos", "out", "--teacher", str(TEACHERS), "--tracks", "8"]
    done = subprocess.run(
        [sys.executable, "-c", "from vil_tracker_core.cli import main; main()", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    written = sorted((tmp_path / "out").iterdir())
    assert done.stdout.splitlines()[-1] == f"{len(written)} sequences in out"
    assert len(read_folder(written[0])) >= AnnotateConfig().least_frames
