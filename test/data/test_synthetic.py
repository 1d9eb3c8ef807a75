"""Made-up videos: the truth that goes with the pixels is found again in the pixels."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data import synthetic
from vil_tracker_core.data.sequence import DataError, ImageError, Sequence
from vil_tracker_core.data.synthetic import (
    CANVAS,
    Cutout,
    Mover,
    Rng,
    Studio,
    hidden_share,
    make_cutout,
    masked_cutout,
    pan_still,
    read_cutout,
    taken_away,
    textured_shape,
)
from vil_tracker_core.geometry import Box, FloatArray, Image

WHITE = (255, 255, 255)


def picture(rng: Rng, width: int = 200, height: int = 160) -> Image:
    """A smooth random photograph."""
    small = rng.integers(0, 255, size=(6, 8, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))


def ellipse(width: int, height: int, colour: tuple[int, int, int] = WHITE) -> Image:
    """(H, W, 4) BGRA with an opaque ellipse that leaves a margin of a few pixels."""
    bgra = np.zeros((height, width, 4), dtype=np.uint8)
    middle, axes = (width // 2, height // 2), (width // 2 - 4, height // 2 - 6)
    cv2.ellipse(bgra, middle, axes, 0, 0, 360, (*colour, 255), -1)
    return bgra


def cutout_of(bgra: Image) -> Cutout:
    cutout = make_cutout(bgra)
    assert cutout is not None
    return cutout


def mover_of(cutout: Cutout, **course: object) -> Mover:
    values: dict[str, object] = {
        "at": np.array([190.0, 160.0]),
        "velocity": np.zeros(2),
        "extent": 60.0,
        "growth": 0.0,
        "angle": 0.0,
        "spin": 0.0,
        "aspect": 1.0,
        "mirrored": False,
        "tilt": np.zeros(2),
        "tilting": np.zeros(2),
    }
    return Mover(cutout=cutout, **{**values, **course})  # type: ignore[arg-type]


def painted_box(mover: Mover, time: float) -> Box:
    """The bounding box of what the mover changes on a black canvas, at half its brightness."""
    canvas = np.zeros((CANVAS[1], CANVAS[0], 3), dtype=np.uint8)
    mover.paint(canvas, time)
    rows, columns = np.nonzero(canvas[..., 1] > 127)
    x, y = columns.min(), rows.min()
    return Box(x, y, columns.max() + 1 - x, rows.max() + 1 - y)


def edges(box: Box) -> FloatArray:
    return np.array([box.x, box.y, box.x + box.w, box.y + box.h])


@pytest.mark.parametrize("seed", range(30))
def test_box_is_that_of_the_painted_pixels(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cutout = cutout_of(ellipse(int(rng.integers(40, 150)), int(rng.integers(40, 150))))
    mover = mover_of(
        cutout,
        at=rng.uniform((150, 130), (230, 190)),
        velocity=rng.normal(0, 1.5, size=2),
        extent=rng.uniform(15, 100),  # from a fifth of the cut-out's own size to about twice
        growth=rng.normal(0, 0.02),
        angle=rng.uniform(-math.pi, math.pi),
        spin=rng.normal(0, 0.02),
        aspect=math.exp(rng.normal(0, 0.12)),
        mirrored=bool(rng.random() < 0.5),
        tilt=rng.normal(0, 0.15, size=2),
        tilting=rng.normal(0, 0.02, size=2),
    )
    time = float(rng.integers(0, 8))
    # the round tip of an enlarged ellipse is lost to a pixel of the cut-out, here up to 2.4 px
    np.testing.assert_allclose(edges(painted_box(mover, time)), edges(mover.box(time)), atol=1.3)


@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("extent", [20.0, 47.0, 90.0])
def test_lopsided_cutout_keeps_its_box(extent: float, mirrored: bool) -> None:
    bgra = np.zeros((80, 100, 4), dtype=np.uint8)
    bgra[10:70, 5:25] = 255  # an L in a corner of its image
    bgra[50:70, 5:60] = 255
    mover = mover_of(cutout_of(bgra), extent=extent, mirrored=mirrored)
    box = mover.box(0)
    np.testing.assert_allclose(edges(painted_box(mover, 0)), edges(box), atol=1.0)
    assert math.sqrt(box.w * box.h) == pytest.approx(extent)
    assert (box.cx, box.cy) == pytest.approx((190, 160))


@pytest.mark.parametrize(("tilt", "wider"), [((0.0, 0.3), "low"), ((0.0, -0.3), "high")])
def test_the_nearer_end_of_a_tilted_square_is_larger(tilt: tuple[float, float], wider: str) -> None:
    mover = mover_of(cutout_of(np.full((60, 60, 4), 255, np.uint8)), tilt=np.array(tilt))
    canvas = np.zeros((CANVAS[1], CANVAS[0], 3), dtype=np.uint8)
    mover.paint(canvas, 0)
    widths = np.count_nonzero(canvas[..., 0] > 127, axis=1)
    rows = np.flatnonzero(widths)
    high, low = widths[rows[2]], widths[rows[-3]]
    assert (low > 1.3 * high) if wider == "low" else (high > 1.3 * low)


def test_no_tilt_turns_an_object_inside_out() -> None:
    mover = mover_of(cutout_of(ellipse(60, 50)), tilt=np.array([3.0, 4.0]), tilting=np.ones(2))
    for time in (0.0, 50.0):
        matrix = mover.homography(time)
        depths = mover.cutout.hull @ matrix[2, :2] + matrix[2, 2]
        assert depths.min() > 0.5
        assert depths.max() < 1.5


def test_mirrored_mover_shows_the_mirrored_object() -> None:
    bgra = np.zeros((60, 60, 4), dtype=np.uint8)
    bgra[..., 3], bgra[:, :20, :3] = 255, 255  # bright on the left
    for mirrored, bright_on_left in ((False, True), (True, False)):
        canvas = np.zeros((CANVAS[1], CANVAS[0], 3), dtype=np.uint8)
        mover_of(cutout_of(bgra), mirrored=mirrored).paint(canvas, 0)
        columns = np.nonzero(canvas[..., 0] > 127)[1]
        assert bool(columns.mean() < 190) == bright_on_left


@pytest.mark.parametrize("at", [(0.0, 160.0), (384.0, 10.0), (200.0, 320.0), (-300.0, 90.0)])
def test_painting_across_the_edge_cuts_the_same_picture(at: tuple[float, float]) -> None:
    mover = mover_of(cutout_of(ellipse(80, 60)), at=np.array(at), angle=0.4)
    moved = mover_of(cutout_of(ellipse(80, 60)), at=np.array(at) + 400, angle=0.4)
    canvas = np.zeros((CANVAS[1], CANVAS[0], 3), dtype=np.uint8)
    wide = np.zeros((1100, 1100, 3), dtype=np.uint8)
    mover.paint(canvas, 0)
    moved.paint(wide, 0)
    inner = wide[400 : 400 + CANVAS[1], 400 : 400 + CANVAS[0]]
    assert np.abs(canvas.astype(int) - inner).max() <= 2


def test_paint_leaves_what_the_cutout_does_not_cover() -> None:
    canvas = picture(np.random.default_rng(0), *CANVAS)
    before = canvas.copy()
    mover = mover_of(cutout_of(ellipse(80, 60)))
    mover.paint(canvas, 0)
    box = mover.box(0)
    outside = np.ones(canvas.shape[:2], dtype=bool)
    outside[int(box.y) - 2 : int(box.y + box.h) + 3, int(box.x) - 2 : int(box.x + box.w) + 3] = 0
    np.testing.assert_array_equal(canvas[outside], before[outside])
    assert (canvas[160, 190] == 255).all()


@pytest.mark.parametrize("seed", range(5))
def test_hull_holds_every_opaque_pixel_and_nothing_more(seed: int) -> None:
    rng = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(rng.normal(size=(40, 50)), (0, 0), 4)
    alpha = np.where(noise > np.quantile(noise, 0.7), 255, 0)
    bgra = np.dstack([np.full((40, 50, 3), 90), alpha]).astype(np.uint8)
    hull = cutout_of(bgra).hull
    rows, columns = np.nonzero(alpha)
    corners = {(x + dx, y + dy) for y, x in zip(rows, columns, strict=True) for dx in (0, 1)
               for dy in (0, 1)}  # fmt: skip
    assert {tuple(point) for point in hull.astype(int).tolist()} <= corners
    sides = np.roll(hull, -1, axis=0) - hull
    points = np.array(sorted(corners))[:, None] - hull  # (corners, hull, 2)
    turns = sides[:, 0] * points[..., 1] - sides[:, 1] * points[..., 0]
    turns *= np.sign(turns.sum())
    assert turns.min() >= 0, "a corner of an opaque pixel lies outside the hull"


def test_extent_is_that_of_the_opaque_part() -> None:
    bgra = np.zeros((60, 60, 4), dtype=np.uint8)
    bgra[10:26, 20:56] = 255
    assert cutout_of(bgra).extent == pytest.approx(math.sqrt(16 * 36))


def test_large_cutout_shrinks_and_keeps_its_shape() -> None:
    cutout = cutout_of(ellipse(640, 320))
    assert cutout.bgra.shape == (80, 160, 4)
    np.testing.assert_allclose(np.ptp(cutout.hull, axis=0), (632 / 4, 308 / 4), atol=2)


@pytest.mark.parametrize("hidden", [0, 255])
def test_colour_under_transparent_pixels_never_shows(hidden: int) -> None:
    """A grey object that is shrunk: colour times alpha is the object's grey times alpha."""
    bgra = ellipse(333, 333, (128, 128, 128))
    bgra[bgra[..., 3] == 0, :3] = hidden
    cutout = cutout_of(bgra).bgra.astype(float)
    expected = np.repeat(cutout[..., 3:] * 128 / 255, 3, axis=-1)
    np.testing.assert_allclose(cutout[..., :3], expected, atol=2)


def test_hardly_opaque_is_no_cutout() -> None:
    bgra = np.full((60, 60, 4), 255, dtype=np.uint8)
    bgra[..., 3] = 100
    assert make_cutout(bgra) is None
    bgra[:8, :7, 3] = 255  # 56 px
    assert make_cutout(bgra) is None
    assert make_cutout(np.full((7, 60, 4), 255, dtype=np.uint8)) is None


def test_files_without_alpha_are_no_cutouts(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "rgb.png"), np.full((40, 40, 3), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "grey.png"), np.full((40, 40), 9, np.uint8))
    cv2.imwrite(str(tmp_path / "deep.png"), np.full((40, 40, 4), 65535, np.uint16))
    cv2.imwrite(str(tmp_path / "good.png"), ellipse(50, 40))
    for name in ("rgb", "grey", "deep"):
        assert read_cutout(tmp_path / f"{name}.png") is None
    assert read_cutout(tmp_path / "good.png") is not None
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        read_cutout(tmp_path / "broken.png")


@pytest.mark.parametrize("mark", [1, 128, 255])
def test_masked_cutout_is_the_marked_object(mark: int) -> None:
    frame = np.full((100, 120, 3), (0, 0, 255), dtype=np.uint8)
    mask = np.zeros((100, 120), dtype=np.uint8)
    cv2.rectangle(frame, (30, 20), (69, 49), (255, 0, 0), -1)
    cv2.rectangle(mask, (30, 20), (69, 49), mark, -1)
    cutout = masked_cutout(frame, mask)
    assert cutout is not None
    np.testing.assert_allclose(np.ptp(cutout.hull, axis=0), (40, 30), atol=1)
    opaque = cutout.bgra[cutout.bgra[..., 3] == 255]
    assert len(opaque) > 1000
    assert (opaque[:, :3] == (255, 0, 0)).all()


@pytest.mark.parametrize("seed", range(12))
def test_textured_shape_is_an_object_of_some_size(seed: int) -> None:
    rng = np.random.default_rng(seed)
    for width, height in ((300, 200), (30, 20)):  # also from a photograph smaller than the shape
        shape = textured_shape(rng, picture(rng, width, height))
        assert shape is not None
        assert shape.extent > 24
        opaque = shape.bgra[..., 3] == 255
        assert opaque.sum() > 0.3 * np.prod(np.ptp(shape.hull, axis=0))
        assert shape.bgra[opaque][:, :3].std(axis=0).max() > 2, "no texture"


def test_small_mask_is_no_cutout() -> None:
    mask = np.zeros((100, 120), dtype=np.uint8)
    assert masked_cutout(np.zeros((100, 120, 3), np.uint8), mask) is None
    mask[:14, :14] = 255  # 196 px
    assert masked_cutout(np.zeros((100, 120, 3), np.uint8), mask) is None


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    rng = np.random.default_rng(7)
    paths = {name: tmp_path / f"{name}.png" for name in ("a", "b", "still", "frame", "mask")}
    cv2.imwrite(str(paths["a"]), ellipse(60, 50, (20, 220, 60)))
    cv2.imwrite(str(paths["b"]), ellipse(120, 70, (220, 30, 160)))
    cv2.imwrite(str(paths["still"]), picture(rng))
    cv2.imwrite(str(paths["frame"]), picture(rng))
    mask = np.zeros((160, 200), dtype=np.uint8)
    cv2.circle(mask, (90, 80), 30, 255, -1)
    cv2.imwrite(str(paths["mask"]), mask)
    return Studio([paths["a"], paths["b"]], [(paths["frame"], paths["mask"])], [paths["still"]])


def test_composed_video_is_a_function_of_the_seed(studio: Studio) -> None:
    fresh = Studio(studio.cutouts, studio.masked, studio.stills)  # with an empty cache
    for seed in range(3):
        one = studio.compose(np.random.default_rng(seed), 4)
        two = fresh.compose(np.random.default_rng(seed), 4)
        np.testing.assert_array_equal(one.boxes, two.boxes)
        for index in range(4):
            assert one.load(index).shape == (CANVAS[1], CANVAS[0], 3)
            np.testing.assert_array_equal(one.load(index), two.load(index))
    other = studio.compose(np.random.default_rng(3), 4)
    assert not np.array_equal(one.load(0), other.load(0))


Painted = list[tuple[Mover, float]]
Compose = Callable[[int], tuple[Sequence, Mover, Painted]]


@pytest.fixture
def compose(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> Compose:
    """A function of a seed -> (video of 6 frames, its target, all it painted in order).

    Occluders are made twice as large as they would be, so that some hide the whole target.
    """
    made: list[Mover] = []
    painted: Painted = []
    make, paint = synthetic._random_mover, Mover.paint

    def making(*args: object, **named: object) -> Mover:
        mover = make(*args, **named)  # type: ignore[arg-type]
        occludes = bool(made) and named.get("speed") == 0.2 * made[0].extent
        made.append(replace(mover, extent=2 * mover.extent) if occludes else mover)
        return made[-1]

    def painting(mover: Mover, canvas: Image, time: float, gain: float = 1.0) -> None:
        painted.append((mover, time))
        paint(mover, canvas, time, gain)

    monkeypatch.setattr(synthetic, "_random_mover", making)
    monkeypatch.setattr(Mover, "paint", painting)

    def composed(seed: int) -> tuple[Sequence, Mover, Painted]:
        made.clear()
        painted.clear()
        video = studio.compose(np.random.default_rng(seed), 6)
        return video, made[0], list(painted)

    return composed


def place(mover: Mover, movers: list[Mover]) -> int:
    return next(index for index, other in enumerate(movers) if other is mover)


def shared(a: FloatArray, b: FloatArray) -> float:
    """Area that two boxes given by their edges share."""
    size = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    return float(np.prod(size.clip(0)))


def seen_part(target: Mover, over: list[Mover], time: float) -> float:
    """The part of the target's pixels that stay when ``over`` is painted on it in black."""
    canvas = np.zeros((800, 900, 3), dtype=np.uint8)  # with room around the picture
    shifted = [replace(mover, at=mover.at + 250) for mover in (target, *over)]
    white = replace(shifted[0], cutout=in_grey(target.cutout, 255))
    white.paint(canvas, time)
    whole = np.count_nonzero(canvas[..., 0] > 127)
    for mover in shifted[1:]:
        replace(mover, cutout=in_grey(mover.cutout, 0)).paint(canvas, time)
    return float(np.count_nonzero(canvas[..., 0] > 127) / whole)


def in_grey(cutout: Cutout, level: int) -> Cutout:
    """The cut-out all in one grey, multiplied by its alpha."""
    alpha = cutout.bgra[..., 3].astype(float)
    colour = np.repeat((level * alpha / 255).astype(np.uint8)[..., None], 3, axis=-1)
    return replace(cutout, bgra=np.dstack([colour, cutout.bgra[..., 3]]))


def test_hidden_share_is_that_of_the_pixels() -> None:
    target = mover_of(cutout_of(ellipse(80, 60)), extent=50.0)
    for dx, extent in ((0.0, 100.0), (25.0, 50.0), (0.0, 20.0), (300.0, 50.0)):
        over = mover_of(cutout_of(ellipse(60, 90)), at=np.array([190 + dx, 160]), extent=extent)
        seen = seen_part(target, [over], 0.0)
        assert hidden_share(target, over, 0.0) == pytest.approx(1 - seen, abs=0.03)
        assert (seen < 0.05) == (extent == 100), "the sizes no longer hide all and some"


def test_box_is_absent_where_hidden_or_outside_or_away(compose: Compose) -> None:
    seen = {"shown": 0, "outside": 0, "hidden": 0, "away": 0}
    for seed in range(80):
        video, target, painted = compose(seed)
        for time in range(len(video)):
            order = [mover for mover, at in painted if at == time]
            if not any(mover is target for mover in order):
                assert time > 0
                assert np.isnan(video.boxes[time]).all()
                seen["away"] += 1
                continue
            over = order[place(target, order) + 1 :]
            assert len(over) <= 1, "only an occluder may be painted over the target"
            box = edges(target.box(time))
            area = float(np.prod(box[2:] - box[:2]))
            outside = shared(box, np.array([0, 0, *CANVAS])) < 0.25 * area
            part = seen_part(target, over, time) if over else 1.0
            if 0.15 < part < 0.25:  # too near to the bound to be sure
                continue
            if outside or part < 0.2:
                assert np.isnan(video.boxes[time]).all()
            else:
                np.testing.assert_allclose(video.boxes[time], target.box(time))
            seen["outside" if outside else "hidden" if part < 0.2 else "shown"] += 1
    assert seen["shown"] > 200
    assert seen["hidden"] > 0, "the seeds show no hidden target: the test has lost its meaning"
    assert seen["away"] > 5


def test_while_the_target_is_away_no_picture_of_it_is_shown(compose: Compose) -> None:
    returns, looked = 0, 0
    for seed in range(100):
        video, target, painted = compose(seed)
        there = [any(m is target for m, at in painted if at == t) for t in range(len(video))]
        assert there[0]
        changes = np.flatnonzero(np.diff(there))
        assert len(changes) <= 2, "it leaves once"
        returns += len(changes) == 2
        for time in np.flatnonzero(~np.array(there)):
            others = [mover for mover, at in painted if at == time]
            assert all(mover.cutout.name != target.cutout.name for mover in others)
            beside = [np.hypot(*(m.at - target.at)) < 2 * target.extent for m in others]
            assert any(beside), "no look-alike"
            looked += 1
    assert looked > 8
    assert returns > 1


def test_a_passer_by_meets_the_target_after_the_first_frame(studio: Studio) -> None:
    """In front of it or behind it; a picture of the target's own object, if in another colour."""
    busy = replace(studio, crossing=1.0)
    made: list[tuple[Mover, Mover]] = []

    def noting(rng: Rng, target: Mover, frames: int) -> Mover:
        passer = Studio._passer_by(busy, rng, target, frames)
        made.append((target, passer))
        return passer

    busy._passer_by = noting  # type: ignore[method-assign]
    for seed in range(60):
        busy.compose(np.random.default_rng(seed), 6)
    assert len(made) == 60
    nearest = []
    for target, passer in made:
        assert passer.cutout.name == target.cutout.name
        apart = [
            np.hypot(*(passer.at + passer.velocity * t - target.at - target.velocity * t))
            for t in np.linspace(0, 5, 51)
        ]
        assert apart[0] > 0.8 * target.extent
        nearest.append(min(apart) / target.extent)
    assert np.median(nearest) < 0.3
    assert max(nearest) < 0.8


def test_no_picture_of_the_target_is_shown_where_it_has_no_box(
    compose: Compose, studio: Studio
) -> None:
    """A passer-by that hides it, or that passes where it has gone, would be taken for it."""
    studio.crossing, passed = 1.0, 0
    for seed in range(80):
        video, target, painted = compose(seed)
        for time in np.flatnonzero(np.isnan(video.boxes[:, 0])):
            assert not any(is_passer(m, target) for m, at in painted if at == time)
        passed += sum(is_passer(m, target) for m, _ in painted)
    assert passed > 150


def is_passer(mover: Mover, target: Mover) -> bool:
    """It comes within a third of the target's extent, with a picture of it."""
    if mover is target or mover.cutout.name != target.cutout.name:
        return False
    apart = [
        np.hypot(*(mover.at + mover.velocity * t - target.at - target.velocity * t))
        for t in np.linspace(1, 5, 41)
    ]
    return bool(min(apart) < target.extent / 3)


def plain_video(count: int, size: float = 60.0) -> Sequence:
    """Grey frames; in the first, a stripe of red shows the target, which moves to the right."""
    boxes = np.array([[150 + 4 * i, 120, size, size] for i in range(count)], dtype=np.float64)
    frames = np.full((count, 320, 420, 3), 128, dtype=np.uint8)
    frames[0, 120 : 120 + int(size), 150 : 150 + int(size)] = 0, 0, 200
    return Sequence("plain", boxes, np.arange(count) / 30, lambda index: frames[index], "real")


def test_an_object_passes_in_front_of_a_real_target(studio: Studio) -> None:
    video, covered = plain_video(5), 0
    for seed in range(40):
        crossed = studio.cross(np.random.default_rng(seed), video)
        assert (crossed.name, crossed.origin) == (video.name, video.origin)
        shares = []
        for index, (row, old) in enumerate(zip(crossed.boxes, video.boxes, strict=True)):
            x, y, w, h = old.astype(int)
            frame = crossed.load(index)
            share = (frame != video.load(index))[y : y + h, x : x + w].any(axis=-1).mean()
            shares.append(share)
            if np.isnan(row).all():
                assert share > 0.55
                covered += 1
            else:
                np.testing.assert_array_equal(row, old)
                assert share < 0.65
        assert shares[0] == 0, "the template would show the other one"
        assert max(shares) > 0
    assert covered > 0
    assert (video.load(1) == 128).all(), "the video's own frames are left as they are"


@pytest.mark.parametrize(
    "box", [(150, 120, 60, 40), (0, 0, 80, 50), (300, 30, 120, 250), (0, 0, 420, 320)]
)
def test_a_target_taken_away_leaves_what_lies_beside_it(box: tuple[int, ...]) -> None:
    """In the middle of the picture, in a corner, as tall as it, and filling it."""
    x, y, w, h = box
    plain = np.full((320, 420, 3), 128, dtype=np.uint8)
    plain[y : y + h, x : x + w] = 0, 0, 200
    boxes = np.tile(np.array(box, dtype=np.float64), (5, 1))
    video = Sequence("red", boxes, np.arange(5) / 30, lambda index: plain, "real")
    starts = set()
    for seed in range(20):
        taken = taken_away(np.random.default_rng(seed), video)
        there = taken.visible
        since = int(there.sum())
        starts.add(since)
        assert there.tolist() == [True] * since + [False] * (5 - since)
        np.testing.assert_array_equal(taken.load(since - 1), plain)
        if w < 420:
            assert (taken.load(4)[y : y + h, x : x + w] == 128).all()
        else:
            assert np.ptp(taken.load(4), axis=(0, 1)).max() <= 2, "one colour"
    assert starts == {1, 2, 3, 4}
    assert (plain[y : y + h, x : x + w] == [0, 0, 200]).all(), "the video's own frames are left"


def test_nothing_passes_where_there_is_no_target(studio: Studio) -> None:
    video = plain_video(4)
    video.boxes[2] = np.nan
    for seed in range(10):
        crossed = studio.cross(np.random.default_rng(seed), video)
        assert np.isnan(crossed.boxes[2]).all()
        np.testing.assert_array_equal(crossed.load(2), video.load(2))


def test_who_passes_a_masked_target_is_its_like(studio: Studio, tmp_path: Path) -> None:
    folder = tmp_path / "walker"
    for part in ("img", "mask"):
        (folder / part).mkdir(parents=True)
    frame, mask = folder / "img" / "1.png", folder / "mask" / "1.png"
    cv2.imwrite(str(frame), np.full((160, 200, 3), (10, 240, 20), np.uint8))
    disc = np.zeros((160, 200), np.uint8)
    cv2.imwrite(str(mask), cv2.circle(disc, (90, 80), 30, 255, -1))
    known = Studio(studio.cutouts, [(frame, mask)], studio.stills)
    video = replace(plain_video(4), name="walker")
    for seed in range(10):
        crossed = known.cross(np.random.default_rng(seed), video)
        shown = np.concatenate([crossed.load(index) for index in range(1, 4)])
        painted = shown[(shown != 128).all(axis=-1)]
        assert len(painted) > 200
        assert (np.median(painted, axis=0) == [10, 240, 20]).all()


def test_a_look_alike_has_the_targets_colour_and_its_own_shape() -> None:
    blue, grey = cutout_of(ellipse(60, 50, (200, 90, 40))), cutout_of(ellipse(90, 30, (90, 90, 90)))
    painted = synthetic._painted_like(grey, blue)
    np.testing.assert_allclose(painted.bgra[15, 45, :3], (200, 90, 40), atol=8)
    np.testing.assert_array_equal(painted.bgra[..., 3], grey.bgra[..., 3])
    assert (painted.bgra[..., :3].max(axis=2) <= painted.bgra[..., 3]).all(), "colour over alpha"


def test_another_colour_is_seen_also_on_a_grey_object() -> None:
    for seed in range(20):
        cutout = cutout_of(ellipse(60, 50, (150, 150, 150)))
        other = synthetic._recoloured(np.random.default_rng(seed), cutout)
        middle, before = other.bgra[25, 30, :3].astype(int), cutout.bgra[25, 30, :3]
        assert np.abs(middle - before).max() > 30
        assert (other.bgra[..., :3].max(axis=2) <= other.bgra[..., 3]).all(), "colour over alpha"


def test_distractors_do_not_start_on_the_target(compose: Compose) -> None:
    others = 0
    for seed in range(40):
        _, target, painted = compose(seed)
        first = [mover for mover, time in painted if time == 0]
        box = edges(target.box(0))
        for mover in first[: place(target, first)]:
            assert shared(box, edges(mover.box(0))) < 0.1 * np.prod(box[2:] - box[:2]), seed
            others += 1
    assert others > 40


def test_distractor_without_room_starts_outside_the_picture() -> None:
    rng = np.random.default_rng(0)
    cutout = cutout_of(ellipse(60, 50))
    target = mover_of(cutout, at=np.array([192.0, 160.0]), extent=200.0)
    for _ in range(20):
        other = synthetic._random_mover(rng, cutout, 200.0, 0.0, apart_from=target)
        assert other.at[0] > CANVAS[0]


def test_empty_cutouts_are_reported(studio: Studio, tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "rgb.png"), np.full((40, 40, 3), 9, np.uint8))
    bare = Studio([tmp_path / "rgb.png"], [], studio.stills)
    with pytest.raises(DataError, match="alpha"):
        [bare.compose(np.random.default_rng(seed), 2) for seed in range(5)]  # some want no shape


def test_all_kinds_of_cutouts_are_used(studio: Studio) -> None:
    rng = np.random.default_rng(0)
    photograph = picture(rng)
    names = [studio.pick_cutout(rng, photograph).name for _ in range(280)]
    kinds = {"a.png": 0, "b.png": 0, "shape": 0, "masked": 0}
    for name in names:
        kinds[name.split()[0] if name.split()[0] in kinds else "masked"] += 1
    assert 20 <= kinds["shape"] <= 62  # a seventh
    assert 85 <= kinds["masked"] <= 155  # three sevenths
    assert 30 <= kinds["a.png"] <= 90
    assert 30 <= kinds["b.png"] <= 90


def test_another_object_is_found_where_there_is_only_one(studio: Studio) -> None:
    lone = Studio(studio.cutouts[:1], [], studio.stills)
    rng = np.random.default_rng(0)
    photograph = picture(rng)
    names = {lone.pick_cutout(rng, photograph, unlike="a.png").name.split()[0] for _ in range(9)}
    assert names == {"shape"}


def test_photographs_alone_make_videos(studio: Studio) -> None:
    video = Studio([], [], studio.stills).compose(np.random.default_rng(0), 3)
    assert video.name.startswith("shape")
    assert video.visible[0]


def test_broken_files_are_named(studio: Studio) -> None:
    whole = studio.stills[0].read_bytes()
    studio.stills[0].write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"still\.png"):
        studio.compose(np.random.default_rng(0), 2)


RED = (0, 0, 255)


def red_photograph(width: int, height: int, box: Box) -> Image:
    """A grey photograph with one red rectangle."""
    image = np.full((height, width, 3), 110, dtype=np.uint8)
    x, y, w, h = (int(value) for value in box)
    image[y : y + h, x : x + w] = RED
    return image


def redness(view: Image) -> Image:
    """(H, W) bool: more than half red."""
    return np.asarray(view[..., 2].astype(int) - view[..., 1] > 127)


@pytest.mark.parametrize(
    ("width", "height", "box"),
    [
        (900, 700, Box(400, 300, 40, 30)),
        (900, 700, Box(330, 250, 260, 180)),  # shown smaller
        (300, 260, Box(130, 110, 50, 40)),  # smaller than a view may be
        (900, 700, Box(150, 120, 30, 60)),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_box_of_a_panned_still_follows_the_pixels(
    width: int, height: int, box: Box, seed: int
) -> None:
    image = red_photograph(width, height, box)
    video = pan_still(np.random.default_rng(seed), image, box, 6)
    assert len(video) == 6
    moved = np.ptp(video.boxes[:, :2], axis=0)
    assert moved.min() > 3, "the camera stands still"
    for index in range(6):
        x, y, w, h = video.boxes[index]
        rows, columns = np.nonzero(redness(video.load(index)))
        found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        np.testing.assert_allclose(found, [x, y, x + w, y + h], atol=1.5)


def test_panned_still_is_a_function_of_the_seed() -> None:
    box = Box(130, 110, 50, 40)
    image = picture(np.random.default_rng(0), 300, 260)
    one, two = (pan_still(np.random.default_rng(5), image, box, 3) for _ in range(2))
    np.testing.assert_array_equal(one.boxes, two.boxes)
    for index in range(3):
        np.testing.assert_array_equal(one.load(index), two.load(index))


@pytest.mark.parametrize("box", [Box(850, 300, 40, 30), Box(400, 8, 40, 30), Box(5, 5, 40, 30)])
def test_target_near_the_edge_has_no_twin(box: Box) -> None:
    """What lies beyond the photograph must not show the target a second time."""
    image = red_photograph(900, 700, box)
    video = pan_still(np.random.default_rng(1), image, box, 4)
    for index in range(4):
        red = redness(video.load(index)).astype(np.uint8)
        parts = cv2.connectedComponents(red)[0] - 1
        assert parts == 1, f"view {index} shows the target {parts} times"
