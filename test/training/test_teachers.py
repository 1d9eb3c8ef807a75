"""Teachers: what they say of their own crops is brought to ours, in place, scale and grid."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.geometry import Box, Crop, Image, iou
from vil_tracker_core.model.presets import preset
from vil_tracker_core.training.config import TeacherConfig, load_config
from vil_tracker_core.training.teachers import (
    Answer,
    FearXs,
    NanoTrack,
    Teacher,
    Window,
    open_network,
    open_teacher,
)

ROOT = Path(__file__).parents[2]
REAL = ROOT.parent / "shared" / "teachers"
MODEL = preset("vil_nano")
GRID = MODEL.search_grid
SIDE = MODEL.search_size


def planes(image: Image) -> Image:
    """(H, W, 3) to (3, H, W)."""
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def opened(kind: str, fear: Path, nano: Path) -> Teacher:
    folder = {"fear_xs": fear, "nanotrack": nano}[kind]
    config = TeacherConfig.model_validate({"kind": kind, "folder": folder, "block": 1})
    return open_teacher(config, MODEL)


@pytest.mark.parametrize("kind", ["fear_xs", "nanotrack"])
@pytest.mark.parametrize("aspect", [1.0, 2.0, 0.5])
@pytest.mark.parametrize("at", [(0.5, 0.5), (0.32, 0.61), (0.75, 0.25), (0.11, 0.86)])
def test_bright_spot_is_found_where_it_is(
    kind: str, aspect: float, at: tuple[float, float], fear_folder: Path, nano_folder: Path
) -> None:
    """Whatever the teacher's crop, the score's centre of mass is the spot's, in our crop."""
    teacher = opened(kind, fear_folder, nano_folder)
    search = np.zeros((SIDE, SIDE, 3), np.uint8)
    x, y = at[0] * SIDE, at[1] * SIDE
    rows, columns = np.mgrid[:SIDE, :SIDE] + 0.5
    spot = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * 20**2))
    search[:] = spot[..., None].astype(np.uint8)
    response = teacher.respond(planes(search[:112, :112]), planes(search), aspect, GRID)
    line = (np.arange(GRID) + 0.5) / GRID
    mass = response.score / response.score.sum()
    assert (mass.sum(0) * line).sum() == pytest.approx(at[0], abs=0.4 / GRID)
    assert (mass.sum(1) * line).sum() == pytest.approx(at[1], abs=0.4 / GRID)


def test_fear_boxes_by_hand(fear_folder: Path) -> None:
    """A target of 4 : 1 whose sqrt(w h) is a quarter of our search crop: the teacher's crop is 5 w
    x 5 h, that is 2.5 x 0.625 of our side, for 256 x 256 px."""
    teacher = FearXs(fear_folder, MODEL)
    template = np.full((3, 112, 112), 100, np.uint8)  # so that the sides are 20, 10, 30, 40 px
    response = teacher.respond(template, np.full((3, SIDE, SIDE), 255, np.uint8), 4.0, GRID)
    line = (np.arange(GRID) + 0.5) / GRID
    points = np.meshgrid(line, line)
    inside = np.abs(line - 0.5) < 0.3  # beyond 0.3125 the teacher saw nothing
    cells = np.ix_(inside, np.ones(GRID, bool))
    np.testing.assert_allclose(response.boxes[2][cells], 50 / 256 * 2.5, rtol=1e-5)
    np.testing.assert_allclose(response.boxes[3][cells], 50 / 256 * 0.625, rtol=1e-5)
    # 5 px right of the point, 15 px below
    wanted = points[0] + 5 / 256 * 2.5
    np.testing.assert_allclose(response.boxes[0][cells], wanted[cells], rtol=1e-5)
    wanted = points[1] + 15 / 256 * 0.625
    np.testing.assert_allclose(response.boxes[1][cells], wanted[cells], rtol=1e-5)
    assert (response.score[np.abs(line - 0.5) > 0.3125 + 1 / 16] == 0).all()


def test_nanotrack_boxes_by_hand(nano_folder: Path) -> None:
    """A square target: the crops' sides are 2 sqrt(w h) and 255 / 127 of that."""
    teacher = NanoTrack(nano_folder, MODEL)
    template = np.zeros((3, 112, 112), np.uint8)
    template[2] = 200  # blue, of RGB: the sides are twice 20, 10, 30, 40 px
    response = teacher.respond(template, np.full((3, SIDE, SIDE), 255, np.uint8), 1.0, GRID)
    window = 2 * 255 / 127 / MODEL.search_factor
    line = (np.arange(GRID) + 0.5) / GRID
    shrunk = 2 * (127 / 128) ** 2  # the fake's 128th row and column are dark
    middle = np.ix_(np.abs(line - 0.5) < 0.43, np.abs(line - 0.5) < 0.43)
    width = response.boxes[2][middle]
    assert np.ptp(width) < 1e-6
    assert width[0, 0] == pytest.approx(shrunk * 50 / 255 * window, rel=1e-3)
    across = response.boxes[0][middle] - line[np.abs(line - 0.5) < 0.43]
    np.testing.assert_allclose(across, shrunk * 5 / 255 * window, rtol=1e-3)


def test_template_is_framed_as_the_teacher_wants_it(fear_folder: Path) -> None:
    """The target's own box grown by 20 % a side: only that much of our template counts."""
    teacher = FearXs(fear_folder, MODEL)
    side, aspect = MODEL.template_size, 1.25
    extent = side / MODEL.template_factor  # sqrt(w h) in our crop
    w, h = 1.4 * extent * math.sqrt(aspect), 1.4 * extent / math.sqrt(aspect)
    x0, y0 = round(side / 2 - w / 2), round(side / 2 - h / 2)
    assert min(x0, y0) > 0
    template = np.zeros((side, side, 3), np.uint8)
    template[y0 : side - y0, x0 : side - x0] = 100
    search = np.full((3, SIDE, SIDE), 255, np.uint8)
    full = teacher.respond(planes(template), search, aspect, GRID)
    assert full.boxes[2, 7, 7] == pytest.approx(50 / 256 * 1.25 * math.sqrt(aspect), rel=0.02)
    wrong = teacher.respond(planes(template), search, 1.0, GRID)
    assert wrong.boxes[2, 7, 7] < 0.95 * 50 / 256 * 1.25


@pytest.mark.parametrize(("kind", "channels"), [("fear_xs", 256), ("nanotrack", 96)])
def test_features_span_the_whole_crop(
    kind: str, channels: int, fear_folder: Path, nano_folder: Path
) -> None:
    teacher = opened(kind, fear_folder, nano_folder)
    ramp = np.broadcast_to(np.arange(SIDE, dtype=np.uint8)[None, None], (3, SIDE, SIDE))
    found = teacher.features(ramp)
    assert found.dtype == np.float16
    assert found.shape == (teacher.channels, 16, 16) == (channels, 16, 16)
    wanted = (np.arange(16) + 0.5) / 16 * SIDE - 0.5
    np.testing.assert_allclose(found[0, 3, :15], wanted[:15], atol=1.5)


def test_window_is_a_plain_resize_at_its_own_size() -> None:
    crop = np.random.default_rng(0).integers(0, 256, size=(3, 40, 40), dtype=np.uint8)
    image = crop.transpose(1, 2, 0)
    np.testing.assert_array_equal(Window(1, 1).cut(crop, 40), image)
    larger = Window(1, 1).cut(crop, 100).astype(int)
    wanted = cv2.resize(image, (100, 100), interpolation=cv2.INTER_LINEAR)
    assert np.abs(larger - wanted)[2:-2, 2:-2].max() <= 6  # 1/32 px of OpenCV's fixed point


def test_window_beyond_the_crop_holds_its_mean_colour() -> None:
    crop = np.zeros((3, 40, 40), np.uint8)
    crop[0] = 90
    crop[1, :, 20:] = 100
    seen = Window(2, 1).cut(crop, 80)
    assert seen[40, 5].tolist() == [90, 50, 0]
    assert seen[40, 30].tolist() == [90, 0, 0]
    assert seen[40, 50].tolist() == [90, 100, 0]
    assert seen[40, 75].tolist() == [90, 50, 0]


def test_answer_on_a_grid_by_hand() -> None:
    """A teacher that sees our crop as it is, 4 points at 8, 24, 40, 56 of 64 px, asked on our
    2 x 2 grid, whose centres lie at 16 and 48: half-way between two points each."""
    score = np.zeros((4, 4))
    score[1, 0], score[1, 1], score[2, 3] = 0.2, 0.6, 1.0
    sides = np.broadcast_to(np.array([4.0, 8, 4, 8])[:, None, None], (4, 4, 4))
    response = Answer(score, sides, 8.0, 16.0, 64).on_grid(Window(1, 1), 2)
    np.testing.assert_allclose(response.score, [[0.2, 0], [0, 0.25]], atol=1e-7)
    np.testing.assert_allclose(response.boxes[:, 0, 1], [0.75, 0.25, 8 / 64, 16 / 64])


def test_missing_file_is_named(tmp_path: Path, fear_folder: Path) -> None:
    with pytest.raises(DataError, match=r"fear_xs_template\.onnx is missing"):
        FearXs(tmp_path, MODEL)
    shutil.copy(fear_folder / "fear_xs_template.onnx", tmp_path)
    with pytest.raises(DataError, match=r"fear_xs_track\.onnx is missing"):
        FearXs(tmp_path, MODEL)
    with pytest.raises(DataError, match=r"nanotrack_backbone\.onnx is missing"):
        NanoTrack(tmp_path, MODEL)


def test_unknown_tensor_is_named(fear_folder: Path) -> None:
    path = fear_folder / "fear_xs_template.onnx"
    with pytest.raises(DataError, match=r"fear_xs_template\.onnx.*'nothing'"):
        open_network(path, ["image"], ["nothing"])
    with pytest.raises(DataError, match=r"fear_xs_template\.onnx.*'picture'"):
        open_network(path, ["picture"], ["features"])


def test_file_that_is_no_network_is_named(tmp_path: Path) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not a network")
    with pytest.raises(DataError, match=r"broken\.onnx"):
        open_network(path, ["image"], ["features"])


# The real networks, on a frame that the test paints.

needs_real = pytest.mark.skipif(
    not REAL.is_dir(), reason="the folder ../shared/teachers is not on this machine"
)


def scene(cx: float, cy: float, w: float, h: float, seed: int) -> Image:
    """A 640 x 480 frame: smooth ground and, filling the box, a bus of that size."""
    rng = np.random.default_rng(5)
    ground = cv2.resize(rng.integers(60, 190, (12, 16, 3), dtype=np.uint8), (640, 480))
    frame = np.asarray(ground, np.uint8).copy()
    x0, y0, x1, y1 = (round(v) for v in (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    frame[y0:y1, x0:x1] = (30, 40, 220)
    for k in range(5):  # windows
        left = x0 + round((k + 0.25) * (x1 - x0) / 5)
        top, bottom = y0 + (y1 - y0) // 6, y0 + (y1 - y0) // 2
        frame[top:bottom, left : left + round((x1 - x0) / 10)] = (240, 230, 200)
    frame[y1 - (y1 - y0) // 4 : y1, x0:x1:3] = 20
    noise = np.random.default_rng(seed).normal(0, 3, frame.shape)
    return np.clip(frame + noise, 0, 255).astype(np.uint8)


def cut(frame: Image, cx: float, cy: float, w: float, h: float, size: int) -> Image:
    """(size, size, 3) stretched crop of a frame, straight from its pixels."""
    corners = np.array([[cx - w / 2, cy - h / 2], [cx + w / 2, cy - h / 2], [cx, cy + h / 2]])
    onto = np.array([[0, 0], [size, 0], [size / 2, size]])
    matrix = cv2.getAffineTransform(
        (corners - 0.5).astype(np.float32), (onto - 0.5).astype(np.float32)
    )
    return np.asarray(cv2.warpAffine(frame, matrix, (size, size)), np.uint8)


def fear_in_frame(template: Image, frame: Image, box: Box, centre: tuple[float, float]) -> Box:
    """FEAR-XS as its own tracker runs it: crops of the frame and a box of the frame."""
    import onnxruntime

    def run(name: str, image: Image, **more: np.ndarray) -> list[np.ndarray]:  # type: ignore[type-arg]
        session = onnxruntime.InferenceSession(str(REAL / name))
        rgb = image[..., ::-1].transpose(2, 0, 1)[None].astype(np.float32)
        found: list[np.ndarray] = session.run(None, {"image": rgb, **more})  # type: ignore[type-arg]
        return found

    z = cut(template, box.cx, box.cy, 1.4 * box.w, 1.4 * box.h, 128)
    (known,) = run("fear_xs_template.onnx", z)
    x = cut(frame, *centre, 5 * box.w, 5 * box.h, 256)
    sides, logits = run("fear_xs_track.onnx", x, template_features=known)
    row, column = divmod(int(logits.argmax()), 16)
    left, top, right, bottom = sides[0, :, row, column]
    px, py = (column - 8) * 16 + 128, (row - 8) * 16 + 128
    sx, sy = 5 * box.w / 256, 5 * box.h / 256
    x0, y0 = centre[0] - 2.5 * box.w + (px - left) * sx, centre[1] - 2.5 * box.h + (py - top) * sy
    return Box(x0, y0, float((left + right) * sx), float((top + bottom) * sy))


def our_answer(
    teacher: Teacher, template: Image, frame: Image, box: Box, centre: tuple[float, float]
) -> Box:
    """The box of the frame that comes out by way of our clips' crops."""
    side = math.sqrt(box.w * box.h)
    near = Crop.centred(box.cx, box.cy, MODEL.template_factor * side, MODEL.template_size)
    wide = Crop.centred(*centre, MODEL.search_factor * side, MODEL.search_size)
    crops = [
        planes(crop.cut(image)[..., ::-1]) for crop, image in ((near, template), (wide, frame))
    ]
    response = teacher.respond(crops[0], crops[1], box.w / box.h, GRID)
    row, column = divmod(int(response.score.argmax()), GRID)
    return wide.to_frame(response.boxes[:, row, column])


@needs_real
@pytest.mark.parametrize("size", [(96, 48), (40, 72)])
def test_fear_by_way_of_our_crops_is_fear_in_the_frame(size: tuple[int, int]) -> None:
    w, h = size
    template, frame = scene(300, 240, w, h, 1), scene(326, 228, w, h, 2)
    box, centre = Box.from_cxcywh(300, 240, w, h), (310.0, 236.0)
    teacher = FearXs(REAL, MODEL)
    direct = fear_in_frame(template, frame, box, centre)
    ours = our_answer(teacher, template, frame, box, centre)
    truth = Box.from_cxcywh(326, 228, w, h)
    assert iou(direct, truth) > 0.7, "the teacher itself must see it, or this shows nothing"
    assert iou(ours, direct) > 0.85
    assert iou(ours, truth) > 0.7


@needs_real
@pytest.mark.parametrize("size", [(60, 60), (96, 48)])
def test_nanotrack_finds_the_target_by_way_of_our_crops(size: tuple[int, int]) -> None:
    w, h = size
    template, frame = scene(300, 240, w, h, 1), scene(326, 228, w, h, 2)
    box, centre = Box.from_cxcywh(300, 240, w, h), (310.0, 236.0)
    ours = our_answer(NanoTrack(REAL, MODEL), template, frame, box, centre)
    assert iou(ours, Box.from_cxcywh(326, 228, w, h)) > 0.75


@needs_real
@pytest.mark.parametrize("kind", ["fear_xs", "nanotrack"])
def test_real_features(kind: str) -> None:
    teacher = opened(kind, REAL, REAL)
    crop = np.random.default_rng(0).integers(0, 256, size=(3, SIDE, SIDE), dtype=np.uint8)
    found = teacher.features(crop)
    assert found.shape == (teacher.channels, 16, 16)
    assert np.isfinite(found).all()
    assert found.astype(np.float32).std() > 0


@pytest.mark.parametrize("path", sorted((ROOT / "config" / "train").glob("*.yaml")), ids=str)
def test_shipped_configs_teacher(path: Path) -> None:
    config = load_config(path)
    if config.teacher is None:
        return
    if not (ROOT / config.teacher.folder).is_dir():
        pytest.skip(f"{config.teacher.folder} is not on this machine")
    found = config.teacher.model_copy(update={"folder": ROOT / config.teacher.folder})
    assert open_teacher(found, config.model_config_of()).channels
