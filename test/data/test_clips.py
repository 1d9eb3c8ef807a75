"""Training clips: boxes, visibility and motion agree with the pixels of the crops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from vil_tracker_core.data import clips
from vil_tracker_core.data.augment import coarsened
from vil_tracker_core.data.clips import (
    BoxedStills,
    Clip,
    ClipDataset,
    Composites,
    Crossed,
    Difficulty,
    StillPatches,
    Videos,
    images_below,
    masked_frames,
    read_boxed_stills,
    redrawn,
)
from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.data.skipped import SkippedImages
from vil_tracker_core.data.synthetic import Rng, Studio
from vil_tracker_core.geometry import Crop, FloatArray, Image
from vil_tracker_core.model.presets import PRESETS

NANO, TINY = PRESETS["vil_nano"], PRESETS["vil_tiny"]
LIGHT, DIM = 250, 150
"""Grey levels of the target's left and right half; the ground is darker than both."""


@lru_cache
def scene(index: int) -> Image:
    """640x480 frame of a two-tone 60x44 target that moves over a dark ground."""
    image = np.full((480, 640, 3), 30, dtype=np.uint8)
    x, y = 250 + 9 * index, 240 - 4 * index
    image[y : y + 44, x : x + 30] = LIGHT
    image[y : y + 44, x + 30 : x + 60] = DIM
    return image


def moving(count: int = 12, hidden: tuple[int, ...] = ()) -> Sequence:
    boxes = np.array([[250 + 9 * i, 240 - 4 * i, 60, 44] for i in range(count)], dtype=np.float64)
    boxes[list(hidden)] = np.nan
    return Sequence("moving", boxes, np.arange(count) / 30, scene)


def still(count: int = 12) -> Sequence:
    boxes = np.tile([250.0, 240, 60, 44], (count, 1))
    return Sequence("still", boxes, np.arange(count) / 30, lambda index: scene(0))


@dataclass
class Fixed:
    """A source that shows the first frames of one video and counts how often it is asked."""

    video: Sequence
    asked: int = 0

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        self.asked += 1
        video = self.video
        return Sequence(video.name, video.boxes[:frames], video.stamps[:frames], video.load)


def clips_of(
    video: Sequence,
    frames: int = 4,
    absent: float = 0.0,
    level: float = 1.0,
    templates: int = 1,
    follow: float = 0.0,
    redrawn: float = 0.0,
    count: int = 40,
) -> ClipDataset:
    sources, difficulty = [(1.0, Fixed(video))], Difficulty(level)
    return ClipDataset(
        sources,
        NANO,
        frames,
        count,
        11,
        lambda _: difficulty,
        absent,
        None,
        templates,
        follow,
        redrawn,
    )


def bright(crop: Image) -> Image:
    """(S, S) bool: the target's pixels in a (3, S, S) crop, whatever the look."""
    grey = cv2.GaussianBlur(crop.mean(axis=0).astype(np.float32), (3, 3), 0)
    ground, top = np.percentile(grey, 20), grey.max()
    return np.asarray(grey > ground + 0.3 * (top - ground))


def found_box(crop: Image) -> FloatArray:
    """(x0, y0, x1, y1) of the target's pixels as shares of the crop, a few stray ones left out."""
    mask = bright(crop)
    ends = []
    for axis in (0, 1):
        line = np.flatnonzero(mask.sum(axis=axis) > 4)
        ends.append((line[0], line[-1] + 1))
    (x0, x1), (y0, y1) = ends
    return np.array([x0, y0, x1, y1]) / crop.shape[-1]


def is_mirrored(crop: Image) -> bool:
    """The lighter half of the target lies on the right."""
    x0, y0, x1, y1 = (found_box(crop) * crop.shape[-1]).astype(int)
    inside = crop[:, y0:y1, x0:x1].mean(axis=(0, 1))
    half = len(inside) // 2
    return bool(inside[:half].mean() < inside[-half:].mean())


def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Clips of a good camera: only light and colour change."""
    monkeypatch.setattr(clips, "degrade", lambda rng, crop, longest, coarse: crop)
    monkeypatch.setattr(clips, "COARSE", 0.0)


def all_clips(dataset: ClipDataset) -> Iterator[Clip]:
    return (dataset[index] for index in range(len(dataset)))


def test_shapes_and_types() -> None:
    clip = clips_of(moving())[0]
    size = NANO.search_size
    assert clip["template"].shape == (1, 3, NANO.template_size, NANO.template_size)
    assert clip["search"].shape == (4, 3, size, size)
    assert clip["template"].dtype == clip["search"].dtype == np.uint8
    assert (clip["box"].shape, clip["box"].dtype) == ((4, 4), np.float32)
    assert (clip["visible"].shape, clip["visible"].dtype) == ((4,), np.bool_)
    assert (clip["motion"].shape, clip["motion"].dtype) == ((4, 3), np.float32)
    assert (clip["first"].shape, clip["first"].dtype) == ((3, size, size), np.uint8)
    assert (clip["drawn"].shape, clip["drawn"].dtype) == ((4,), np.float32)
    assert (clip["last"].shape, clip["last"].dtype) == ((4,), np.float32)
    assert (clip["tells"].shape, clip["tells"].dtype) == ((3,), np.bool_)


def test_channels_are_rgb() -> None:
    red = np.full((100, 120, 3), (0, 0, 220), dtype=np.uint8)
    video = Sequence("red", np.tile([40.0, 40, 20, 20], (2, 1)), np.arange(2) / 30, lambda i: red)
    seen = [clip["template"][0].mean(axis=(1, 2)) for clip in all_clips(clips_of(video, 1))]
    coloured = [mean for mean in seen if np.ptp(mean) > 5]  # a grey look is grey
    assert len(coloured) > 20
    assert all(mean.argmax() == 0 for mean in coloured)


def test_box_marks_the_target_in_the_crop_also_when_mirrored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain(monkeypatch)
    mirrored = []
    for clip in all_clips(clips_of(moving())):
        flipped = is_mirrored(clip["template"][0])
        mirrored.append(flipped)
        assert clip["visible"].all()
        for crop, (cx, cy, w, h) in zip(clip["search"], clip["box"], strict=True):
            wanted = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]).clip(0, 1)
            np.testing.assert_allclose(found_box(crop), wanted, atol=3 / 224)
            whole = cx - w / 2 > 0 and cx + w / 2 < 1
            burnt_out = np.percentile(crop.mean(axis=0)[bright(crop)], 20) > 245
            assert not whole or burnt_out or is_mirrored(crop) == flipped
    assert 8 < sum(mirrored) < 32


def test_wide_crops_hold_the_search_crop_in_their_middle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first frame; the others are drawn nearer to their target's size."""
    plain(monkeypatch)
    narrow, wide = clips_of(moving()), clips_of(moving(), follow=1.0)
    edge = NANO.search_size // 2
    for index in range(len(wide)):
        one, other = narrow[index], wide[index]
        assert other["search"].shape[-1] == 2 * NANO.search_size
        assert other["follows"]
        assert not one["follows"]
        np.testing.assert_allclose(
            other["box"][0], [0.25, 0.25, 0, 0] + one["box"][0] / 2, atol=0.01
        )
        middle = other["search"][0, :, edge:-edge, edge:-edge]
        # corners and sides are whole pixels, so edges may lie a pixel or two apart
        blurred = [
            cv2.GaussianBlur(crop.mean(0).astype(np.float32), (0, 0), 4)
            for crop in (middle, one["search"][0])
        ]
        inner = np.s_[8:-8, 8:-8]
        difference = np.abs(blurred[0] - blurred[1])[inner]
        assert difference.mean() < 3


def test_boxes_mark_the_target_in_wide_crops(monkeypatch: pytest.MonkeyPatch) -> None:
    plain(monkeypatch)
    for clip in all_clips(clips_of(moving(), follow=1.0)):
        for crop, (cx, cy, w, h) in zip(clip["search"], clip["box"], strict=True):
            wanted = np.array([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2]).clip(0, 1)
            np.testing.assert_allclose(found_box(crop), wanted, atol=4 / 448)


def test_followed_crops_keep_their_size() -> None:
    """After the first frame the crop is about as many times the target as online."""
    for clip in all_clips(clips_of(moving(), follow=1.0)):
        extents = np.sqrt(clip["box"][1:, 2:].prod(axis=1)) * 2 * NANO.search_factor
        assert 0.6 < extents.min() < extents.max() < 1.7


def edge_width(crop: Image) -> float:
    """Over how many pixels of the crop the target's left or right edge, the steeper one, rises."""
    _, y0, _, y1 = (found_box(crop) * crop.shape[-1]).astype(int)
    third = (y1 - y0) // 3
    line = crop[:, y0 + third : y1 - third].mean(axis=(0, 1))
    return float(np.ptp(line) / np.abs(np.diff(line)).max())


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_a_coarse_camera_is_coarse_in_all_crops(
    monkeypatch: pytest.MonkeyPatch, follow: float
) -> None:
    """An edge is as wide as the sensor's pixels: so many for the target's extent, however large
    a crop shows it."""
    monkeypatch.setattr(clips, "degrade", lambda rng, crop, *how: coarsened(crop, how[-1]))
    monkeypatch.setattr(clips, "FEWEST", 12)
    monkeypatch.setattr(clips, "MOST", 12)
    widths: dict[float, list[float]] = {0.0: [], 1.0: []}
    for share, found in widths.items():
        monkeypatch.setattr(clips, "COARSE", share)
        for clip in all_clips(clips_of(still(), frames=2, follow=follow)):
            for crop in (clip["template"][0], clip["first"], clip["search"][0]):
                x0, y0, x1, y1 = found_box(crop)
                if x0 > 0 and x1 < 1:
                    extent = crop.shape[-1] * math.sqrt((x1 - x0) * (y1 - y0))
                    found.append(edge_width(crop) / extent * 12)
    assert len(widths[1.0]) > 60
    assert 0.9 < np.median(widths[1.0]) < 2.0
    assert np.percentile(widths[1.0], 10) > 0.7
    assert np.median(widths[0.0]) < 0.5


@given(
    side=st.integers(4, 2000),
    size=st.sampled_from([128, 224, 448]),
    pixels=st.floats(5, 60),
    extent=st.floats(2, 500),
)
def test_a_coarse_camera_has_the_same_pixels_in_every_crop(
    side: int, size: int, pixels: float, extent: float
) -> None:
    made = clips.coarseness(Crop(0, 0, side, size), pixels / extent)
    assert 0 < made <= 1
    if made < 1:
        assert made * size / side * extent == pytest.approx(pixels)
    else:
        assert size / side * extent <= pixels * (1 + 1e-9)


def test_template_shows_the_target_in_its_middle() -> None:
    for clip in all_clips(clips_of(moving())):
        x0, y0, x1, y1 = found_box(clip["template"][0])
        assert abs((x0 + x1) / 2 - 0.5) < 0.1
        assert abs((y0 + y1) / 2 - 0.5) < 0.1
        # side of the crop: template_factor times the geometric mean of the box's sides
        extent = math.sqrt((x1 - x0) * (y1 - y0))
        assert extent == pytest.approx(1 / NANO.template_factor, rel=0.25)


def test_a_second_template_shows_the_target_of_the_first_search_frame(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clips, "COARSE", 0.0)

    def colour_of(index: int) -> Image:
        """The same scene with a ground of its own in each frame."""
        return np.where(scene(0) > 30, scene(0), 20 * index + 20).astype(np.uint8)

    dataset = clips_of(replace(still(4), load=colour_of), frames=3, templates=2)
    offsets, extents, nearer = [], [], []
    for clip in all_clips(dataset):
        assert clip["template"].shape == (2, 3, NANO.template_size, NANO.template_size)
        first, second = clip["template"]
        assert is_mirrored(first) == is_mirrored(second)
        x0, y0, x1, y1 = found_box(second)
        offsets.append([(x0 + x1) / 2 - 0.5, (y0 + y1) / 2 - 0.5])
        extents.append(math.sqrt((x1 - x0) * (y1 - y0)) * NANO.template_factor)
        before, seen, now = (np.median(crop) for crop in (first, second, clip["search"][0]))
        if abs(now - before) > 6:  # some looks burn the ground out
            nearer.append(abs(seen - now) < abs(seen - before))
    assert np.abs(offsets).max() < 0.2, "a track's box is not exact, but it is the target's"
    assert 0.01 < np.std(offsets) < 0.06
    assert np.mean(extents) == pytest.approx(1, abs=0.1)
    assert all(nearer)
    assert len(nearer) > 20


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_a_second_template_of_an_absent_target_is_the_first_again(follow: float) -> None:
    """Where it is hidden, and where the crop, the middle of a wide one, does not show it."""
    unseen, reach = 0, 2 if follow else 1
    for video, absent in ((moving(hidden=(1,)), 0.0), (moving(), 1.0)):
        for clip in all_clips(clips_of(video, absent=absent, templates=2, follow=follow)):
            off = reach * np.abs(clip["box"][0, :2] - 0.5).max()
            if not off < 0.5:
                unseen += 1
                np.testing.assert_array_equal(clip["template"][1], clip["template"][0])
    assert unseen > 45


def test_motion_maps_a_crop_to_the_one_before_also_when_mirrored(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What stands still in the frame is found where the motion says, in numbers and in pixels."""
    plain(monkeypatch)
    seen = set()
    for clip in all_clips(clips_of(still())):
        seen.add(is_mirrored(clip["template"][0]))
        box, motion = clip["box"].astype(np.float64), clip["motion"].astype(np.float64)
        np.testing.assert_array_equal(motion[0], (0, 0, 1))
        for k in range(1, len(box)):
            shift, zoom = motion[k, :2], motion[k, 2]
            np.testing.assert_allclose(zoom * box[k, :2] + shift, box[k - 1, :2], atol=1e-5)
            np.testing.assert_allclose(zoom * box[k, 2:], box[k - 1, 2:], atol=1e-5)
            before, now = found_box(clip["search"][k - 1]), found_box(clip["search"][k])
            if np.concatenate([before, now]).min() > 0 and np.concatenate([before, now]).max() < 1:
                middle_now, middle_before = (now[:2] + now[2:]) / 2, (before[:2] + before[2:]) / 2
                np.testing.assert_allclose(zoom * middle_now + shift, middle_before, atol=4 / 224)
    assert seen == {False, True}


def test_hidden_frames_are_not_visible_and_the_crop_waits() -> None:
    for clip in all_clips(clips_of(moving(hidden=(2, 3)), level=0.0)):
        assert clip["visible"].tolist() == [True, False, False, True]
        assert np.isnan(clip["box"][1:3]).all()
        assert np.isfinite(clip["motion"]).all()


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_the_first_crop_shows_the_drawn_box_in_its_middle(follow: float) -> None:
    """As the tracker cuts it, also where the other crops are wider; the box is near the pixels of
    the target, as a hand has drawn it, in clips that are mirrored and in those that are not."""
    off = []
    for clip in all_clips(clips_of(moving(), follow=follow)):
        x0, y0, x1, y1 = found_box(clip["first"])
        cx, cy, w, h = clip["drawn"].tolist()
        assert (cx, cy) == pytest.approx((0.5, 0.5), abs=0.01)
        assert NANO.search_factor**2 * w * h == pytest.approx(1, rel=0.02)
        off.append([x0 - (cx - w / 2), y0 - (cy - h / 2), x1 - (cx + w / 2), y1 - (cy + h / 2)])
    assert np.abs(np.median(off, axis=0)).max() < 0.01
    assert 0.004 < np.abs(off).mean() < 0.03


def test_most_clips_tell_the_net_of_its_error_and_of_its_boxes_and_keep_what_they_show() -> None:
    told = np.mean([clip["tells"] for clip in all_clips(clips_of(still(4), frames=1))], axis=0)
    assert told == pytest.approx(clips.TELLS, abs=0.2)


@pytest.mark.parametrize("follow", [0.0, 1.0])
def test_most_clips_tell_where_the_target_was(follow: float) -> None:
    """In units of the tracker's crop, also where the clip's crops are wider and where it is
    mirrored; in the others of nowhere."""
    told, off, zooms = 0, [], []
    for clip in all_clips(clips_of(moving(), frames=1, follow=follow, count=160)):
        last = clip["last"].astype(np.float64)
        if not last.any():
            continue
        told += 1
        assert (last[2:] > 0).all()
        box = clip["box"][0].astype(np.float64)
        if follow:
            box[:2], box[2:] = 0.5 + 2 * (box[:2] - 0.5), 2 * box[2:]
        off.append(np.abs((last[:2] - box[:2]) / box[2:]).max())
        zooms.append(np.log(last[2:] / box[2:]))
    assert 0.5 < told / 160 < 0.7
    assert np.median(off) < 0.25  # close by
    assert 0.04 < np.mean(np.array(off) > 0.7) < 0.25  # and at times not
    assert 0.03 < np.median(np.abs(zooms)) < 0.2
    assert abs(np.median(zooms)) < 0.05


@given(seed=st.integers(0, 10**6))
def test_redrawn_boxes_keep_their_place_on_the_target(seed: int) -> None:
    """All are the same part of, or the same frame around, what the source's boxes hold; where the
    target is absent it stays so."""
    video = moving(hidden=(2,))
    video.boxes[:, 2:] *= np.linspace(1, 2, len(video))[:, None]
    made = redrawn(np.random.default_rng(seed), video)
    old, new = np.delete(video.boxes, 2, axis=0), np.delete(made.boxes, 2, axis=0)
    places = (new - old)[:, :2] / old[:, 2:]
    shares = new[:, 2:] / old[:, 2:]
    np.testing.assert_allclose(places, np.tile(places[0], (len(places), 1)), atol=1e-9)
    np.testing.assert_allclose(shares, np.tile(shares[0], (len(shares), 1)), atol=1e-9)
    for place, share in zip(places[0], shares[0], strict=True):
        if share < 1:  # a part
            assert place >= -1e-9
            assert place + share <= 1 + 1e-9
        else:
            assert place <= 1e-9
            assert place + share >= 1 - 1e-9
    assert np.isnan(made.boxes[2]).all()


def test_a_share_of_the_clips_is_redrawn() -> None:
    """Box, template and first crop belong to the new box."""
    sides = []
    for redrawn_share in (0.0, 0.5):
        dataset = clips_of(moving(), redrawn=redrawn_share)
        videos = [dataset.sample(index)[1] for index in range(len(dataset))]
        sides.append([tuple(video.boxes[0, 2:]) for video in videos])
    assert set(sides[0]) == {(60.0, 44.0)}
    assert 10 < sum(side != (60.0, 44.0) for side in sides[1]) < 30


def test_absent_crops_do_not_show_the_target() -> None:
    """From one of the clip's frames on, which may be the first: cut beside it, or it is painted
    over. The source's only video has no other target to show."""
    beside, painted, first = 0, 0, []
    for clip in all_clips(clips_of(moving(), absent=1.0)):
        since = int(clip["visible"].sum())
        assert clip["visible"].tolist() == [True] * since + [False] * (4 - since)
        first.append(since)
        for crop, (cx, cy, w, h) in zip(clip["search"][since:], clip["box"][since:], strict=True):
            there = np.isfinite(cx)
            assert not there or max(abs(cx - 0.5), abs(cy - 0.5)) > 0.5
            if not there or max(abs(cx - 0.5) - w / 2, abs(cy - 0.5) - h / 2) > 0.55:
                assert np.ptp(cv2.GaussianBlur(crop.mean(axis=0), (9, 9), 0)) < 60
                beside, painted = beside + there, painted + (not there)
    assert beside > 20
    assert painted > 10
    assert set(first) == {0, 1, 2, 3}


def test_crossed_videos_are_a_share_of_a_source(studio: Studio) -> None:
    changed = 0
    source = Crossed(Fixed(moving()), studio, share=0.4)
    for seed in range(60):
        video = source(np.random.default_rng(seed), 4, 5)
        changed += any((video.load(i) != scene(i)).any() for i in range(4))
    assert 12 <= changed <= 36


@dataclass
class InTurn:
    """A source that shows one video, then the other, and so on."""

    videos: tuple[Sequence, Sequence]
    asked: int = 0

    def __call__(self, rng: Rng, frames: int, max_gap: int) -> Sequence:
        video = self.videos[self.asked % 2]
        self.asked += 1
        return Sequence(video.name, video.boxes[:frames], video.stamps[:frames], video.load)


def test_some_absent_crops_show_another_target() -> None:
    """In its middle, as the target would be, and yet there is nothing to be found."""
    other = Sequence("other", still().boxes, still().stamps, lambda index: 255 - scene(0))
    shown = 0
    for index in range(40):
        source = InTurn((moving(), other))
        dataset = ClipDataset([(1.0, source)], NANO, 3, 40, 2, lambda index: Difficulty(0.0), 1.0)
        clip = dataset[index]
        gone = ~clip["visible"]
        assert gone.any()
        assert np.isfinite(clip["motion"]).all()
        if source.asked == 2:  # the other target, dark on light
            assert np.isnan(clip["box"][gone]).all()
            for crop in clip["search"][gone]:
                grey = crop.mean(axis=0)
                middle = grey[80:-80, 80:-80].mean()
                assert middle < grey[:20].mean() - 20
            shown += 1
    assert 6 < shown < 22


def test_broken_images_are_skipped_counted_and_named(photographs: list[Path]) -> None:
    whole, broken = photographs[0], photographs[1]
    data = broken.read_bytes()
    source = StillPatches(photographs)

    def made() -> ClipDataset:
        return ClipDataset([(1.0, source)], TINY, 1, 40, 3, lambda index: Difficulty(0.5))

    before = list(all_clips(made()))
    broken.write_bytes(data[: len(data) // 2])
    dataset, again = made(), made()
    changed = 0
    for index, old in enumerate(before):
        clip = dataset[index]
        assert clip["search"].tobytes() == again[index]["search"].tobytes()
        changed += clip["search"].tobytes() != old["search"].tobytes()
    assert 8 < changed < 32, "only the clips of the broken image are others"
    (reason,) = dataset.skipped.reasons()
    assert str(broken) in reason
    assert "cut short" in reason
    whole.unlink()
    with pytest.raises(DataError, match=r"20 clips in a row.*photograph"):
        dataset[0]


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_workers_tell_what_they_skipped(
    tmp_path: Path, photographs: list[Path], workers: int
) -> None:
    photographs[1].write_bytes(b"not a picture")
    skipped = SkippedImages(tmp_path / "skipped.txt")
    dataset = ClipDataset(
        [(1.0, StillPatches(photographs))],
        TINY,
        1,
        24,
        3,
        lambda index: Difficulty(0.5),
        skipped=skipped,
    )
    batches = list(DataLoader(dataset, batch_size=4, num_workers=workers))
    assert len(batches) == 6
    (reason,) = dataset.skipped.reasons()
    assert str(photographs[1]) in reason


def test_absent_crops_are_cut_beside_the_target() -> None:
    """Also where the shift of a hard clip points back to the target."""
    sources = [(1.0, Fixed(still()))]
    dataset = ClipDataset(sources, TINY, 1, 500, 0, lambda index: Difficulty(1.0), absent=1.0)
    assert sum(bool(clip["visible"].any()) for clip in all_clips(dataset)) == 0


def test_crops_beside_the_target_show_the_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a target in a corner, too: a crop of nothing but border would teach nothing."""
    monkeypatch.setattr(clips, "COARSE", 0.0)  # of which noise is left
    boxes = np.tile([15.0, 20, 60, 44], (2, 1))
    noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), dtype=np.uint8)
    corner = Sequence("corner", boxes, np.arange(2) / 30, lambda index: noise)
    shares = []
    for clip in all_clips(clips_of(corner, 1, absent=1.0, level=0.0)):
        crop = clip["search"][0].mean(axis=0)
        rows, columns = (np.abs(np.diff(crop, axis=axis)).max(axis=axis) > 9 for axis in (1, 0))
        shares.append(rows.mean() * columns.mean())
    assert np.median(shares) > 0.8


def test_half_of_the_clips_are_calm() -> None:
    """There, as online, the target is near the crop's middle, nearer still from frame two on."""
    clips = list(all_clips(clips_of(still(), 3)))
    far = np.stack([np.abs(clip["box"][1:, :2] - 0.5).max() for clip in clips])
    bound = Difficulty(1.0).shift
    assert (far < bound / 4 + 0.01).sum() >= 16
    assert (far > bound / 4 + 0.01).sum() >= 8


def test_share_of_absent_clips() -> None:
    hidden = sum(not clip["visible"].any() for clip in all_clips(clips_of(moving(), 1, 0.3)))
    assert 4 <= hidden <= 22  # of 40


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_shift_and_zoom_follow_the_difficulty(level: float) -> None:
    difficulty = Difficulty(level)
    boxes = np.stack([clip["box"][0] for clip in all_clips(clips_of(still(), 1, level=level))])
    shift = np.abs(boxes[:, :2] - 0.5).max(axis=0)
    assert (shift <= difficulty.shift + 0.01).all()  # crops have whole pixels
    assert (shift > 0.7 * difficulty.shift).all()
    zoom = np.log(NANO.search_factor * np.sqrt(boxes[:, 2] * boxes[:, 3]))
    assert zoom.std() == pytest.approx(difficulty.zoom, rel=0.4)


def test_difficulty_grows_with_its_level() -> None:
    easy, hard = Difficulty(0.0), Difficulty(1.0)
    assert (easy.max_gap, hard.max_gap) == (5, 75)
    assert (easy.shift, easy.zoom) == (0.12, 0.08)
    assert (hard.shift, hard.zoom) == pytest.approx((0.34, 0.45))
    assert hard.shift < 0.5, "the target's centre must stay in the search crop"


def test_weights_of_sources_are_respected() -> None:
    sources = [Fixed(still()) for _ in range(3)]
    weighted = list(zip((3.0, 0.0, 1.0), sources, strict=True))
    dataset = ClipDataset(weighted, TINY, 1, 400, 5, lambda index: Difficulty(0.0), 0.0)  # type: ignore[arg-type]
    for _ in all_clips(dataset):
        pass
    first, never, last = (source.asked for source in sources)
    assert never == 0
    assert first + last == 400
    assert 265 < first < 335


def test_no_source_is_refused() -> None:
    with pytest.raises(DataError, match="no source"):
        ClipDataset([], TINY, 1, 4, 5, lambda index: Difficulty(0.0))


def test_clip_takes_the_difficulty_of_its_number() -> None:
    asked = []

    def schedule(index: int) -> Difficulty:
        asked.append(index)
        return Difficulty(0.0)

    dataset = ClipDataset([(1.0, Fixed(still()))], TINY, 1, 9, 5, schedule)
    dataset[7], dataset[2]
    assert asked == [7, 2]


@pytest.fixture
def photographs(tmp_path: Path) -> list[Path]:
    rng = np.random.default_rng(3)
    paths = []
    for index in range(2):
        small = rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
        path = tmp_path / f"photograph{index}.jpg"
        cv2.imwrite(str(path), cv2.resize(small, (240, 180), interpolation=cv2.INTER_CUBIC))
        paths.append(path)
    return paths


@pytest.fixture
def studio(tmp_path: Path, photographs: list[Path]) -> Studio:
    bgra = np.full((40, 60, 4), (20, 200, 90, 255), dtype=np.uint8)
    bgra[:8, :8, 3] = 0
    cv2.imwrite(str(tmp_path / "stamp.png"), bgra)
    return Studio([tmp_path / "stamp.png"], [], photographs)


def test_clip_is_a_function_of_seed_and_number(studio: Studio, photographs: list[Path]) -> None:
    def made(seed: int) -> ClipDataset:
        fresh = Studio(studio.cutouts, studio.masked, studio.stills)
        boxed = [(photographs[0], np.array([[60.0, 50, 40, 30], [100, 90, 30, 30]]))]
        sources = [
            (1.0, Videos([moving(), still()])),
            (1.0, BoxedStills(boxed)),
            (1.0, StillPatches(photographs)),
            (1.0, Composites(fresh)),
        ]
        return ClipDataset(sources, TINY, 2, 16, seed, lambda index: Difficulty(0.5), 0.2)

    one, two, other = made(0), made(0), made(1)
    order = np.random.default_rng(0).permutation(16)
    late = {int(index): two[int(index)] for index in order}  # in another order, too
    differ = 0
    for index in range(16):
        clip = one[index]
        for name, value in clip.items():
            assert value.tobytes() == late[index][name].tobytes(), (index, name)  # type: ignore
        differ += clip["search"].tobytes() != other[index]["search"].tobytes()
    assert differ == 16
    assert one[0]["search"].tobytes() != one[1]["search"].tobytes()


def test_patches_and_composites_begin_with_a_box(studio: Studio, photographs: list[Path]) -> None:
    rng = np.random.default_rng(0)
    for source in (StillPatches(photographs), Composites(studio)):
        for _ in range(15):
            video = source(rng, 3, 5)
            assert len(video) == 3
            assert video.visible[0]
            assert (video.boxes[video.visible][:, 2:] > 4).all()


def chosen_frames(videos: Videos, rng: Rng, frames: int, max_gap: int) -> list[int]:
    """Which frames a source shows: their brightness is their index."""
    video = videos(rng, frames, max_gap)
    shown = [int(video.load(index)[0, 0, 0]) for index in range(frames)]
    assert video.boxes[:, 0].tolist() == shown
    return shown


def numbered(count: int) -> Sequence:
    """A video whose frame i is of the level i and whose box lies at x = i."""
    boxes = np.tile([0.0, 0, 5, 5], (count, 1))
    boxes[:, 0] = np.arange(count)
    return Sequence(
        "numbered", boxes, np.arange(count) / 30, lambda i: np.full((2, 2, 3), i, np.uint8)
    )


def test_videos_go_forwards_or_backwards_and_never_stand_still() -> None:
    frames, max_gap = 4, 8
    videos = Videos([numbered(2 * (max_gap + 3 * (frames - 2)) + 1)])
    rng = np.random.default_rng(0)
    ways, firsts = set(), set()
    for _ in range(400):
        steps = np.diff(chosen_frames(videos, rng, frames, max_gap))
        way = int(np.sign(steps[0]))
        assert 1 <= way * steps[0] <= max_gap
        assert all(1 <= way * step <= 3 for step in steps[1:])
        ways.add(way)
        firsts.add(int(abs(steps[0])))
    assert ways == {-1, 1}
    assert firsts == set(range(1, max_gap + 1))


@pytest.mark.parametrize("count", [2, 3, 7, 9, 20, 60])
def test_videos_shorter_than_the_gap(count: int) -> None:
    """They stay inside, in order, and repeat a frame only where there are too few."""
    videos = Videos([numbered(count)])
    rng = np.random.default_rng(0)
    for _ in range(200):
        steps = np.diff(chosen_frames(videos, rng, 3, 75))
        assert (steps >= 0).all() or (steps <= 0).all()
        assert steps.all() or count < 9


def test_one_search_frame_is_another_frame_than_the_template() -> None:
    videos = Videos([numbered(30)])
    rng = np.random.default_rng(0)
    for _ in range(300):
        template, search = chosen_frames(videos, rng, 2, 75)
        assert template != search


def test_videos_begin_where_the_target_is_seen() -> None:
    video = moving(hidden=(0, 1, 2, 7, 8))
    rng = np.random.default_rng(0)
    assert all(Videos([video])(rng, 3, 4).visible[0] for _ in range(100))


def test_boxed_stills_are_read(tmp_path: Path, photographs: list[Path]) -> None:
    csv = photographs[0].with_suffix(".csv")
    csv.write_text("10,20,30,40\n5,5,11.9,50\nnan,nan,nan,nan\n1.5,2.5,12,12\n")
    photographs[1].with_suffix(".csv").write_text("\n")  # nothing to see in this one
    ((path, boxes),) = read_boxed_stills(tmp_path)
    assert path == photographs[0]
    np.testing.assert_array_equal(boxes, [[10, 20, 30, 40], [1.5, 2.5, 12, 12]])
    assert len(read_boxed_stills(tmp_path, least_side=30)[0][1]) == 1
    assert read_boxed_stills(tmp_path, least_side=50) == []


def test_boxed_still_without_its_image(tmp_path: Path) -> None:
    (tmp_path / "gone.csv").write_text("1,2,30,40\n")
    with pytest.raises(DataError, match=r"gone\.csv has no image gone\.jpg"):
        read_boxed_stills(tmp_path)


def test_boxed_still_with_a_malformed_row(photographs: list[Path]) -> None:
    csv = photographs[0].with_suffix(".csv")
    csv.write_text("10,20,30,40\n10,20,30\n")
    with pytest.raises(DataError, match=r"photograph0\.csv, line 2.*'10,20,30'"):
        read_boxed_stills(csv.parent)


def test_images_below_skip_a_folder(tmp_path: Path) -> None:
    for name in ("a.jpg", "deep/er/b.PNG", "stamps/c.png", "stamps/more/d.png", "notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    names = [path.name for path in images_below(tmp_path, (tmp_path / "stamps",))]
    assert names == ["a.jpg", "b.PNG"]
    assert len(images_below(tmp_path)) == 4


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_masks_find_their_frames(tmp_path: Path, suffix: str) -> None:
    for folder in ("img", "mask"):
        (tmp_path / "cat" / folder).mkdir(parents=True)
    (tmp_path / "cat" / "img" / f"01{suffix}").write_bytes(b"")
    for name in ("01.png", "02.png"):  # the second has no frame
        (tmp_path / "cat" / "mask" / name).write_bytes(b"")
    ((frame, mask),) = masked_frames(tmp_path)
    assert (frame.name, mask.name) == (f"01{suffix}", "01.png")
