"""The rendered flight: the same bytes for a seed, true boxes, a picture that stays in bounds."""

from __future__ import annotations

import math
from dataclasses import replace

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.flight import Camera, Flight, Wobble, plan_flight, render_flight
from vil_tracker_core.data.landscape import (
    CAR_HEIGHT,
    CAR_WIDTH,
    LANE,
    TEXTURE_SIZE,
    Mesh,
    World,
)
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.geometry import Image

SEEDS = range(5)
BARE = World(np.full((TEXTURE_SIZE, TEXTURE_SIZE, 3), 128, np.uint8), [], np.zeros((0, 3)))


@pytest.fixture(scope="module")
def flight() -> Flight:
    """The default flight of seed 3."""
    return plan_flight(3)


@pytest.fixture(scope="module")
def calm() -> Flight:
    """A flight without tree, traffic and sensor effects."""
    return plan_flight(3, occlusion=0, traffic=0, sensor=False)


def in_world(flight: Flight, world: World) -> Flight:
    """A copy of ``flight`` in another landscape."""
    copy = replace(flight)
    vars(copy)["world"] = world  # where cached_property keeps it
    return copy


def target_pixels(flight: Flight, world: World, index: int) -> np.ndarray:
    """(height, width) bool: what changes when all of the target turns from black to white."""
    frames: list[Image] = []
    for grey in (0.0, 1e4):
        mesh = flight.target.mesh
        painted = Mesh(mesh.corners, np.full_like(mesh.colours, grey))
        target = replace(flight.target, mesh=painted)
        frames.append(in_world(replace(flight, target=target), world).frame(index))
    changed = np.abs(frames[1].astype(int) - frames[0]).max(axis=2)
    return np.asarray(changed > 64)


def fixed(angle: float) -> Wobble:
    """A wobble that stays at ``angle``."""
    return Wobble(angle, np.zeros(3), np.full(3, math.pi / 2))


# --- frames


def test_a_seed_gives_the_same_bytes_in_any_order(flight: Flight) -> None:
    again = render_flight(3)
    later, earlier = again.load(170), again.load(20)
    assert np.array_equal(earlier, flight.frame(20))
    assert np.array_equal(later, flight.frame(170))
    assert not np.array_equal(earlier, later)


def test_another_seed_gives_another_picture_and_another_truth(flight: Flight) -> None:
    other = plan_flight(4)
    assert other.box(20) != flight.box(20)
    assert not np.array_equal(in_world(other, flight.world).frame(20), flight.frame(20))


def test_a_frame_is_a_colour_image_with_contrast(flight: Flight) -> None:
    frame = flight.frame(0)
    assert frame.shape == (480, 640, 3)
    assert frame.dtype == np.uint8
    assert 50 < frame.mean() < 170
    assert frame.std() > 20


def test_the_sensor_changes_a_frame_only_slightly(flight: Flight) -> None:
    clean = in_world(replace(flight, sensor=None), flight.world).frame(60)
    change = np.abs(clean.astype(int) - flight.frame(60))
    assert 1 < change.mean() < 15


def test_noise_differs_from_frame_to_frame(flight: Flight) -> None:
    assert flight.sensor is not None
    grey = np.full((48, 64, 3), 128, np.uint8)
    still = np.zeros(2)
    one, other = (
        flight.sensor.expose(grey, 0.0, still, np.random.default_rng(seed)) for seed in (1, 2)
    )
    assert not np.array_equal(one, other)


# --- camera


def test_projection_is_opencvs() -> None:
    rng = np.random.default_rng(0)
    camera = Camera.aimed(np.array([3.0, -7.0, 40.0]), 0.7, 0.9, 0.05, (640, 480))
    points = np.column_stack([rng.uniform(-40, 80, (50, 2)), rng.uniform(0, 9, 50)])
    pixels, depth = camera.project(points)
    rotation, _ = cv2.Rodrigues(camera.rotation)
    expected, _ = cv2.projectPoints(
        points, rotation, -camera.rotation @ camera.position, camera.matrix, np.zeros(5)
    )
    ahead = depth > 1
    assert ahead.sum() > 20
    np.testing.assert_allclose(pixels[ahead], expected[ahead, 0], rtol=0, atol=1e-8)


def test_a_camera_sees_upright_and_not_mirrored() -> None:
    north = Camera.aimed(np.array([0.0, 0.0, 30.0]), math.pi / 2, 0.8, 0.0, (640, 480))
    (west, east, high), _ = north.project(np.array([(-5.0, 30, 0), (5, 30, 0), (-5, 30, 4)]))
    assert west[0] < east[0]
    assert high[1] < west[1]


def test_the_ground_homography_is_the_projection_of_the_ground(flight: Flight) -> None:
    camera = flight.camera(2.0)
    corners = [(0.0, 0.0), (640.0, 0.0), (640.0, 480.0), (100.0, 333.0)]
    ground = np.array([[*camera.ground_point(corner), 0.0] for corner in corners])
    np.testing.assert_allclose(camera.project(ground)[0], corners, rtol=0, atol=1e-6)


# --- truth


@pytest.mark.parametrize("index", [0, 50, 101, 160, 239])
def test_truth_is_the_drawn_outline(calm: Flight, index: int) -> None:
    rows, columns = np.nonzero(target_pixels(calm, BARE, index))
    x0, y0, x1, y1 = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    box = calm.box(index)
    assert box is not None
    drawn = np.array([x0, y0, x1, y1])
    truth = np.array([box.x, box.y, box.x + box.w, box.y + box.h])
    np.testing.assert_allclose(drawn, truth, rtol=0, atol=1.5)


def test_only_the_tree_hides_the_target(calm: Flight, flight: Flight) -> None:
    without_tree = World(
        flight.world.texture,
        [solid for solid in flight.world.solids if solid is not flight.occluder],
        np.array([s.middle for s in flight.world.solids if s is not flight.occluder]),
    )
    for index in range(0, 240, 40):
        free = np.count_nonzero(target_pixels(calm, BARE, index))
        assert np.count_nonzero(target_pixels(calm, without_tree, index)) > 0.97 * free


def test_what_stands_is_too_far_away_to_hide_the_target(flight: Flight) -> None:
    """No house or tree reaches the flattest sight line to the target, from whatever side."""
    flattest = 1.25  # run over rise
    for seed in SEEDS:
        plan = plan_flight(seed, occlusion=0, traffic=0)
        for time in np.arange(0, 8, 0.2):
            x, y, z = plan.camera(time).position - [*plan.target.pose(time)[:2], 0.0]
            assert math.hypot(x, y) < flattest * z
    for solid in flight.world.solids:
        points = solid.corners.reshape(-1, 3) if isinstance(solid, Mesh) else solid.leaves
        if solid is not flight.occluder and points[:, 2].max() > CAR_HEIGHT:
            from_car = flight.roads[0].distance(points[:, :2]) - LANE - CAR_WIDTH / 2
            assert (from_car > flattest * points[:, 2]).all()


@pytest.mark.parametrize("share", [0.2, 0.6])
def test_the_tree_hides_what_was_asked_for(share: float) -> None:
    flight = plan_flight(3, occlusion=share)
    hidden = [flight.hidden_share(index) for index in range(0, 240, 6)]
    assert max(hidden) == pytest.approx(share, abs=0.12)
    assert hidden[0] == hidden[-1] == 0
    assert np.count_nonzero(hidden) < len(hidden) / 3


def test_hidden_share_agrees_with_the_frame(flight: Flight) -> None:
    lone = replace(flight, traffic=[], sensor=None)
    assert lone.occluder is not None
    tree = World(BARE.texture, [lone.occluder], lone.occluder.middle[None])
    seen, whole = (np.count_nonzero(target_pixels(lone, w, 120)) for w in (tree, BARE))
    assert 1 - seen / whole == pytest.approx(lone.hidden_share(120), abs=0.02)


def test_options_leave_the_truth_alone(flight: Flight, calm: Flight) -> None:
    assert [flight.box(i) for i in range(0, 240, 17)] == [calm.box(i) for i in range(0, 240, 17)]


def test_boxes_stay_inside_and_in_range() -> None:
    for seed in SEEDS:
        boxes = render_flight(seed).boxes
        assert np.isfinite(boxes).all()
        assert (boxes[:, :2] > 0).all()
        assert (boxes[:, :2] + boxes[:, 2:] < [640, 480]).all()
        assert boxes[:, 2:].min() > 24
        assert boxes[:, 2:].max() < 120


def test_the_target_moves_and_changes_its_shape() -> None:
    for seed in SEEDS:
        boxes = render_flight(seed).boxes
        aspect = boxes[:, 2] / boxes[:, 3]
        assert np.ptp(boxes[:, 0] + boxes[:, 2] / 2) > 80
        assert aspect.max() / aspect.min() > 1.3


def test_the_flight_keeps_its_physical_bounds() -> None:
    for seed in SEEDS:
        flight = plan_flight(seed)
        times = np.arange(240) / 30
        cameras = [flight.camera(time) for time in times]
        altitude = np.array([camera.position[2] for camera in cameras])
        tilt = np.degrees([math.asin(-camera.rotation[2, 2]) for camera in cameras])
        places = np.array([flight.target.pose(time)[:2] for time in times])
        speed = np.linalg.norm(np.diff(places, axis=0), axis=1) * 30
        for values, low, high in ((altitude, 25, 60), (tilt, 35, 70), (speed, 4.5, 15.5)):
            assert low <= values.min() <= values.max() <= high, f"seed {seed}"


def test_boxes_scale_with_the_picture(flight: Flight) -> None:
    half = plan_flight(3, size=(320, 240))
    np.testing.assert_allclose(
        np.array(half.box(40)), np.array(flight.box(40)) / 2, rtol=0, atol=1e-9
    )


def test_a_flight_depends_on_time_not_on_the_rate() -> None:
    slow, fast = render_flight(5, frames=60, fps=15.0), render_flight(5, frames=120, fps=30.0)
    np.testing.assert_allclose(slow.boxes, fast.boxes[::2], rtol=0, atol=1e-9)
    np.testing.assert_allclose(slow.stamps, fast.stamps[::2], rtol=0, atol=1e-12)


def turned(flight: Flight, angle: float) -> Flight:
    """The flight with the camera's heading off by ``angle`` radians, and steady."""
    sway = (fixed(angle), fixed(0.0), fixed(0.0))
    return replace(flight, path=replace(flight.path, sway=sway))


def test_no_box_when_the_target_is_behind_the_camera(calm: Flight) -> None:
    assert turned(calm, math.pi).box(10) is None


def test_a_box_is_cut_at_the_edge(calm: Flight) -> None:
    """As the camera turns left, the target leaves to the right."""
    boxes = [turned(calm, angle).box(10) for angle in np.linspace(0, 1.2, 60)]
    cut = [box for box in boxes if box is not None and box.x + box.w == 640]
    assert cut
    assert all(box.w < boxes[0].w for box in cut[1:] if boxes[0] is not None)
    assert boxes[-1] is None


# --- errors


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 0}, "frames=0"),
        ({"fps": 0.0}, "fps=0"),
        ({"size": (8, 8)}, "size"),
        ({"seed": -1}, "seed=-1"),
        ({"occlusion": 1.0}, "occlusion=1"),
        ({"traffic": -1}, "traffic=-1"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, object], named: str) -> None:
    with pytest.raises(DataError, match=named):
        render_flight(**{"seed": 0, **options})  # type: ignore[arg-type]


def test_a_frame_outside_the_flight_is_refused(flight: Flight) -> None:
    for index in (-1, 240):
        with pytest.raises(IndexError, match="flight of 240 frames"):
            flight.frame(index)
