"""Boxes, crops and the maps between them."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vil_tracker_core.geometry import (
    Box,
    Crop,
    clip_to_frame,
    crop_motion,
    intersection_area,
    iou,
    share_inside,
    to_cxcywh,
    to_xywh,
    validate_box,
)

lengths = st.floats(0.5, 500)
places = st.floats(-500, 500)
boxes = st.builds(Box, places, places, lengths, lengths)
whole_boxes = st.builds(
    Box, st.integers(0, 12), st.integers(0, 12), st.integers(0, 8), st.integers(0, 8)
)
crops = st.builds(
    Crop, st.integers(-300, 300), st.integers(-300, 300), st.integers(4, 400), st.integers(8, 256)
)
FRAME = (640, 480)


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


# -- boxes ---------------------------------------------------------------------------------------


def rasterised(box: Box) -> np.ndarray:
    mask = np.zeros((20, 20), bool)
    mask[int(box.y) : int(box.y + box.h), int(box.x) : int(box.x + box.w)] = True
    return mask


@given(a=whole_boxes, b=whole_boxes)
def test_iou_counts_shared_pixels(a: Box, b: Box) -> None:
    ours, theirs = rasterised(a), rasterised(b)
    shared, either = int((ours & theirs).sum()), int((ours | theirs).sum())
    assert intersection_area(a, b) == shared
    assert float(iou(a, b)) == pytest.approx(shared / either if either else 0.0)


@given(a=boxes, b=boxes)
def test_iou_is_symmetric_bounded_and_one_for_the_same_box(a: Box, b: Box) -> None:
    assert float(iou(a, b)) == pytest.approx(float(iou(b, a)))
    assert 0 <= float(iou(a, b)) <= 1 + 1e-12
    assert float(iou(a, a)) == pytest.approx(1, abs=1e-9)


def test_iou_has_no_plus_one() -> None:
    assert float(iou((0, 0, 10, 10), (5, 0, 10, 10))) == pytest.approx(50 / 150)
    assert float(iou((0, 0, 10, 10), (10, 0, 10, 10))) == 0


def test_iou_broadcasts_and_keeps_nan() -> None:
    many = [[0, 0, 10, 10], [5, 0, 10, 10], [np.nan] * 4, [90, 90, 1, 1]]
    np.testing.assert_allclose(iou(many, (0, 0, 10, 10)), [1, 1 / 3, np.nan, 0])
    assert iou(np.zeros((3, 1, 4)), np.zeros((1, 2, 4))).shape == (3, 2)


@given(box=boxes)
def test_centre_form_is_another_way_to_write_a_box(box: Box) -> None:
    assert to_cxcywh(box) == pytest.approx((box.cx, box.cy, box.w, box.h))
    assert to_xywh(to_cxcywh(box)) == pytest.approx(box)
    assert Box.from_cxcywh(*to_cxcywh(box)) == pytest.approx(box)


@pytest.mark.parametrize(
    ("box", "why"),
    [
        (Box(math.nan, 0, 10, 10), "is not finite"),
        (Box(0, math.inf, 10, 10), "is not finite"),
        (Box(0, 0, math.inf, 10), "is not finite"),
        (Box(0, 0, 0, 10), "is empty"),
        (Box(5, 5, 10, -3), "is empty"),
        (Box(5, 5, 10, 1.9), "is too small: at least 2 px"),
        (Box(640, 0, 10, 10), "lies outside the 640x480 image"),
        (Box(-10, 0, 10, 10), "lies outside the 640x480 image"),
        (Box(0, 481, 10, 10), "lies outside the 640x480 image"),
        (Box(0, 0, 1281, 10), "is more than twice as large as the 640x480 image"),
        (Box(0, -900, 10, 961), "is more than twice as large as the 640x480 image"),
    ],
)
def test_unusable_boxes_are_refused_with_the_box_and_the_reason(box: Box, why: str) -> None:
    with pytest.raises(ValueError, match=rf"^box x=.* y=.* w=.* h=.* {why}"):
        validate_box(box, FRAME)


@pytest.mark.parametrize("box", [Box(0, 0, 2, 2), Box(-5, -5, 10, 10), Box(0, 0, 640, 480)])
def test_usable_boxes_come_back_as_floats(box: Box) -> None:
    checked = validate_box(Box(*(np.float32(value) for value in box)), FRAME)
    assert checked == box
    assert {type(value) for value in checked} == {float}


@given(box=boxes)
def test_clipping_gives_the_part_inside(box: Box) -> None:
    clipped = clip_to_frame(box, FRAME)
    inside = intersection_area(box, Box(0, 0, *FRAME))
    assert clipped.w * clipped.h == pytest.approx(inside, abs=1e-6)
    assert 0 <= clipped.x <= clipped.x + clipped.w <= FRAME[0] + 1e-9
    assert 0 <= clipped.y <= clipped.y + clipped.h <= FRAME[1] + 1e-9


@given(box=boxes)
def test_the_share_inside_is_of_what_can_be(box: Box) -> None:
    share = share_inside(box, FRAME)
    assert 0 <= share <= 1 + 1e-9
    assert (share == 0) == (intersection_area(box, Box(0, 0, *FRAME)) == 0)
    centred = Box.from_cxcywh(FRAME[0] / 2, FRAME[1] / 2, 4 * box.w, 4 * box.h)
    assert share_inside(centred, FRAME) == pytest.approx(1)


@pytest.mark.parametrize(
    ("box", "share"),
    [(Box(0, 0, 40, 30), 1), (Box(-20, 10, 40, 30), 0.5), (Box(620, 465, 40, 30), 0.25)],
)
def test_shares_of_boxes_at_the_edge(box: Box, share: float) -> None:
    assert share_inside(box, FRAME) == pytest.approx(share)


# -- crops ---------------------------------------------------------------------------------------


@given(crop=crops, box=boxes)
def test_to_frame_inverts_to_unit(crop: Crop, box: Box) -> None:
    assert crop.to_frame(crop.to_unit(box)) == pytest.approx(box, abs=1e-9)


@given(crop=crops)
def test_the_crop_itself_is_the_unit_square(crop: Crop) -> None:
    whole = Box(crop.x, crop.y, crop.side, crop.side)
    assert crop.to_unit(whole) == pytest.approx((0.5, 0.5, 1, 1))


@pytest.mark.parametrize("times", [1, 2, 4, 8])
def test_a_shrunk_crop_shows_the_mean_of_what_it_covers(times: int) -> None:
    frame = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    crop = Crop(20, 30, 64 * times, 64)
    inner = frame[30 : 30 + crop.side, 20 : 20 + crop.side].astype(np.float64)
    means = inner.reshape(64, times, 64, times, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(crop.cut(frame), means, atol=1.5)  # each halving rounds


@given(box=boxes, factor=st.floats(1, 5))
def test_a_crop_lies_around_its_box(box: Box, factor: float) -> None:
    """To the pixels to which corner and side are rounded."""
    crop = Crop.around(box, factor, 128)
    wanted, whole = max(round(factor * max(box.w * box.h, 1.0) ** 0.5), 4), 1
    while wanted >= 2 * whole * 128:
        whole *= 2
    assert wanted - whole < crop.side <= wanted
    assert crop.side % whole == 0, "it cannot be halved as often as it should"
    assert abs(crop.x + crop.side / 2 - box.cx) <= 0.5 + 1e-9
    assert abs(crop.y + crop.side / 2 - box.cy) <= 0.5 + 1e-9
    assert crop.scale == 128 / crop.side


@given(x=st.integers(0, 40), y=st.integers(0, 30), side=st.integers(4, 30))
def test_a_crop_of_its_own_size_is_a_copy(x: int, y: int, side: int) -> None:
    frame = noise(60, 70)
    cut = Crop(x, y, side, side).cut(frame)
    np.testing.assert_array_equal(cut, frame[y : y + side, x : x + side])
    assert not np.shares_memory(cut, frame)


@given(x=st.integers(-50, 100), y=st.integers(-50, 100))
def test_what_lies_outside_gets_the_mean_of_what_lies_inside(x: int, y: int) -> None:
    frame, side = noise(60, 70), 32
    cut = Crop(x, y, side, side).cut(frame)
    assert cut.shape == (side, side, 3)
    assert cut.dtype == np.uint8
    rows, columns = np.arange(y, y + side), np.arange(x, x + side)
    inside = np.outer((rows >= 0) & (rows < 60), (columns >= 0) & (columns < 70))
    wanted = frame[rows.clip(0, 59)][:, columns.clip(0, 69)]
    np.testing.assert_array_equal(cut[inside], wanted[inside])
    source = cut[inside] if inside.any() else frame.reshape(-1, 3)
    assert np.abs(cut[~inside] - source.mean(0)).max(initial=0) <= 1.0


def test_cutting_leaves_the_frame_alone() -> None:
    frame = noise(60, 70)
    before = frame.copy()
    Crop(-10, -10, 90, 32).cut(frame)
    np.testing.assert_array_equal(frame, before)


def test_a_smaller_crop_averages_pixels_and_a_larger_one_keeps_flat_colours() -> None:
    frame = noise(64, 64)
    halved = Crop(0, 0, 64, 32).cut(frame).astype(float)
    wanted = frame.reshape(32, 2, 32, 2, 3).mean(axis=(1, 3))
    assert np.abs(halved - wanted).max() <= 0.5
    flat = np.full((20, 20, 3), (10, 20, 30), np.uint8)
    np.testing.assert_array_equal(Crop(2, 2, 8, 64).cut(flat), np.full((64, 64, 3), (10, 20, 30)))


@pytest.mark.parametrize(("side", "size"), [(64, 32), (40, 80), (96, 96)])
def test_a_point_of_the_frame_is_found_where_to_unit_says(side: int, size: int) -> None:
    """The centre of mass of a white square, through the pixels: no half-pixel shift."""
    frame = np.zeros((200, 200, 3), np.uint8)
    box = Box(72, 88, 16, 12)
    frame[88:100, 72:88] = 255
    crop = Crop(60, 70, side, size)
    seen = crop.cut(frame)[..., 0].astype(float)
    centre = (np.arange(size) + 0.5) / size
    found = ((seen.sum(0) * centre).sum() / seen.sum(), (seen.sum(1) * centre).sum() / seen.sum())
    assert found == pytest.approx(tuple(crop.to_unit(box)[:2]), abs=0.05 / side)


def test_a_crop_around_a_huge_box_stays_small_in_memory() -> None:
    """A box may be twice as large as the frame, a lost track's crop 8 times that: the frame is
    scaled, not the crop's empty ground filled."""
    import tracemalloc

    frame = noise(108, 192)
    crop = Crop.around(Box(-96, -54, 384, 216), 8.0, 64)
    tracemalloc.start()
    cut = crop.cut(frame)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert cut.shape == (64, 64, 3)
    assert peak < 4 * frame.nbytes + 1e6


@given(old=crops, new=crops, at=st.tuples(places, places))
def test_crop_motion_maps_points_of_the_new_crop_to_the_old(
    old: Crop, new: Crop, at: tuple[float, float]
) -> None:
    point = Box(*at, 1, 1)
    dx, dy, s = crop_motion(old, new)
    u, v = new.to_unit(point)[:2]
    assert (s * u + dx, s * v + dy) == pytest.approx(tuple(old.to_unit(point)[:2]), abs=1e-9)


@given(crop=crops)
def test_a_crop_that_stays_has_no_motion(crop: Crop) -> None:
    assert crop_motion(crop, crop) == (0, 0, 1)
