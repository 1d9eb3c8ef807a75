"""A drone's flight over a procedural landscape, following a car, with the car's exact box.

The ground's texture is drawn by homography; houses, trees and cars are solids drawn through the
same pinhole camera, far ones first, so that they move with true parallax. The landscape itself is
in `landscape`.

Everything is a pure function of (seed, time): frames come in any order, and again the same.

Frames and units: metres, seconds, radians. World x east, y north, z up, ground at z = 0.
A heading is counter-clockwise from east. Camera x right, y down, z forward. Pixels are continuous
as in `geometry`: pixel ``i`` covers ``[i, i + 1)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import cv2
import numpy as np
import numpy.typing as npt

from vil_tracker_core.data.landscape import (
    CAR_LENGTH,
    KERB,
    LANE,
    PERIOD,
    TEXELS_PER_METRE,
    Colour,
    Mesh,
    Road,
    Solid,
    Tree,
    World,
    build_world,
    car_mesh,
    shadow_points,
    tint,
)
from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.geometry import Box, FloatArray, Image, clip_to_frame

SUPERSAMPLING = 2
"""Frames are drawn this many times larger and averaged down: smooth edges, no grown outlines."""
FOCAL_PER_WIDTH = 1.17
"""Focal length over image width: 46 degrees across."""
SHUTTER = 1 / 120
"""Exposure time of a frame, seconds."""
LARGEST_REACH = 11.0
"""No solid reaches further than this from its middle, metres."""
NEAR = 1.0
"""Solids that reach nearer to the camera's plane than this many metres are not drawn."""

AnySolid = TypeVar("AnySolid", Mesh, Tree, Mesh | Tree)


@dataclass(frozen=True)
class Wobble:
    """A smooth random signal of time: three sines, never beyond ``amplitude``."""

    amplitude: float
    rates: FloatArray
    phases: FloatArray

    WEIGHTS = np.array([0.6, 0.25, 0.15])

    @classmethod
    def draw(cls, rng: np.random.Generator, amplitude: float, period: float) -> Wobble:
        """A signal whose slowest part repeats after about ``period`` seconds."""
        rates = 2 * math.pi / period * np.array([1.0, 1.9, 3.1]) * rng.uniform(0.85, 1.15, 3)
        return cls(amplitude, rates, rng.uniform(0, 2 * math.pi, 3))

    def __call__(self, time: float) -> float:
        return self.amplitude * float(self.WEIGHTS @ np.sin(self.rates * time + self.phases))


# --- camera -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Camera:
    """A pinhole camera.

    Attributes:
        position: (3,) world metres.
        rotation: (3, 3) world axes to camera axes; its rows are the camera's right, down, forward.
        focal: focal length in pixels.
        size: (width, height) in pixels; the principal point is the middle.
    """

    position: FloatArray
    rotation: FloatArray
    focal: float
    size: tuple[int, int]

    @classmethod
    def aimed(
        cls,
        position: FloatArray,
        heading: float,
        tilt: float,
        roll: float,
        size: tuple[int, int],
    ) -> Camera:
        """A camera looking along ``heading``, ``tilt`` radians below the horizon."""
        ch, sh, ct, st = math.cos(heading), math.sin(heading), math.cos(tilt), math.sin(tilt)
        forward = np.array([ct * ch, ct * sh, -st])
        right = np.array([sh, -ch, 0.0])
        down = np.cross(forward, right)
        cr, sr = math.cos(roll), math.sin(roll)
        rotation = np.stack([cr * right + sr * down, cr * down - sr * right, forward])
        return cls(position, rotation, FOCAL_PER_WIDTH * size[0], size)

    @property
    def matrix(self) -> FloatArray:
        """(3, 3) intrinsic matrix."""
        width, height = self.size
        return np.array([[self.focal, 0, width / 2], [0, self.focal, height / 2], [0, 0, 1.0]])

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Pixels (..., 2) and depths (...) in metres of world points (..., 3).

        Pixels mean something only where the depth is positive.
        """
        seen = (points - self.position) @ self.rotation.T
        depth = seen[..., 2]
        safe = np.where(np.abs(depth) > 1e-9, depth, 1e-9)
        middle = np.array([self.size[0] / 2, self.size[1] / 2])
        return self.focal * seen[..., :2] / safe[..., None] + middle, depth

    def ground_homography(self) -> FloatArray:
        """(3, 3) from ground points (x, y, 1) in metres to homogeneous pixels."""
        ground = np.column_stack(
            [self.rotation[:, 0], self.rotation[:, 1], -self.rotation @ self.position]
        )
        return np.asarray(self.matrix @ ground)

    def ground_point(self, pixel: tuple[float, float]) -> FloatArray:
        """(2,) ground point in metres seen at ``pixel``."""
        point = np.linalg.solve(self.ground_homography(), np.array([*pixel, 1.0]))
        return np.asarray(point[:2] / point[2])


# --- drawing ------------------------------------------------------------------------------------


def _draw_mesh(canvas: Image, camera: Camera, mesh: Mesh, sun: FloatArray) -> None:
    """Paints the faces that look at the camera, shaded by the ``sun`` (unit vector towards it)."""
    pixels, depth = camera.project(mesh.corners)
    if depth.min() < NEAR:
        return
    normals = mesh.normals()
    facing = np.einsum("fi,fi->f", normals, camera.position - mesh.corners[:, 0]) > 0
    light = 0.52 + 0.55 * np.clip(normals @ sun, 0, None)
    colours = np.clip(mesh.colours * light[:, None], 0, 255)
    corners, shift = _fixed_point(pixels)
    for index in np.flatnonzero(facing):
        cv2.fillConvexPoly(canvas, corners[index], colours[index].tolist(), cv2.LINE_8, shift)


def _draw_tree(canvas: Image, camera: Camera, tree: Tree) -> None:
    pixels, depth = camera.project(tree.leaves)
    if depth.min() < NEAR:
        return
    trunk = np.array([[*tree.root, 0.0], tree.leaves.mean(axis=0)])
    ends, trunk_depth = camera.project(trunk)
    if trunk_depth.min() > NEAR:
        width = max(1, round(0.35 * camera.focal * SUPERSAMPLING / float(trunk_depth[0])))
        (start, end), shift = _fixed_point(ends)
        cv2.line(canvas, start.tolist(), end.tolist(), (38, 52, 62), width, cv2.LINE_8, shift)
    centres, shift = _fixed_point(pixels)
    radii = np.round(camera.focal * tree.radii / depth * SUPERSAMPLING * (1 << shift)).astype(int)
    for i in np.argsort(-depth):
        cv2.circle(
            canvas,
            centres[i].tolist(),
            int(radii[i]),
            tree.colours[i].tolist(),
            -1,
            cv2.LINE_8,
            shift,
        )


def _draw_shadow(canvas: Image, camera: Camera, mesh: Mesh, sun: FloatArray) -> None:
    """Darkens the ground behind a convex solid, seen from the sun."""
    corners = mesh.corners.reshape(-1, 3)
    feet = np.column_stack([shadow_points(corners, sun), np.zeros(len(corners))])
    pixels, depth = camera.project(feet)
    if depth.min() < NEAR:
        return
    hull = np.round(cv2.convexHull(pixels.astype(np.float32)) * SUPERSAMPLING).astype(np.int32)
    x, y, w, h = cv2.boundingRect(hull)
    x0, y0 = max(x, 0), max(y, 0)
    region = canvas[y0 : max(y + h, 0), x0 : max(x + w, 0)]
    if region.size == 0:
        return
    mask = np.zeros(region.shape[:2], np.uint8)
    cv2.fillConvexPoly(mask, hull - np.array([x0, y0], np.int32), 1)
    region >>= mask[..., None]  # halves what lies in the shadow


def _fixed_point(pixels: FloatArray) -> tuple[npt.NDArray[np.int32], int]:
    """Pixels as OpenCV's drawing takes them on the enlarged canvas, and the fraction's bits.

    OpenCV counts from the middle of the first pixel, we from its corner: hence the half.
    """
    shift = 4
    scaled = (pixels * SUPERSAMPLING - 0.5) * (1 << shift)
    return np.round(np.clip(scaled, -(2**20), 2**20)).astype(np.int32), shift


# --- cars ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cruise:
    """How far a car has come: a mean speed (m/s) and a surge (metres) about it."""

    speed: float
    surge: Wobble

    def __call__(self, time: float) -> float:
        return self.speed * time + self.surge(time)


@dataclass(frozen=True)
class Car:
    """A car that drives along a road.

    Attributes:
        mesh: as `car_mesh` gives it.
        road: the road that it follows.
        start: metres along the road at time 0.
        left: metres left of the centre line.
        forward: it drives the way the road runs, otherwise against it.
        cruise: how far it has come at any time.
    """

    mesh: Mesh
    road: Road
    start: float
    left: float
    forward: bool
    cruise: Cruise

    def pose(self, time: float) -> FloatArray:
        """(3,) of (x, y, heading) at ``time``."""
        way = 1.0 if self.forward else -1.0
        x, y, heading = self.road.poses(self.start + way * self.cruise(time), self.left)
        return np.array([x, y, heading if self.forward else heading + math.pi])

    def at(self, time: float) -> Mesh:
        """The car's solid in the world at ``time``."""
        return self.mesh.placed(*self.pose(time))


# --- the flight ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Path:
    """Where the drone is and looks: it circles the place where the target was a moment ago.

    Attributes:
        lag: seconds that the drone is behind the target.
        bearing: direction from the target to the drone at ``abeam``, radians.
        orbit: radians a second.
        abeam: seconds.
        range, tilt: distance to the target (metres) and angle below the horizon (radians):
            a mean and a wobble about it.
        sway: turns of (heading, tilt, roll) away from the target, radians.
        hover: shifts of the drone in (x, y, z), metres.
        shake: fast turns of (heading, tilt, roll), radians.
    """

    lag: float
    bearing: float
    orbit: float
    abeam: float
    range: tuple[float, Wobble]
    tilt: tuple[float, Wobble]
    sway: tuple[Wobble, Wobble, Wobble]
    hover: tuple[Wobble, Wobble, Wobble]
    shake: tuple[Wobble, Wobble, Wobble]

    @classmethod
    def draw(cls, rng: np.random.Generator, bearing: float, abeam: float) -> Path:
        degree = math.pi / 180

        def three(
            amplitudes: tuple[float, float, float], period: float
        ) -> tuple[Wobble, Wobble, Wobble]:
            a, b, c = (Wobble.draw(rng, amplitude, period) for amplitude in amplitudes)
            return a, b, c

        return cls(
            lag=rng.uniform(0.3, 0.5),
            bearing=bearing,
            orbit=rng.choice([-1.0, 1.0]) * rng.uniform(7, 13) * degree,
            abeam=abeam,
            range=(50.0, Wobble.draw(rng, 10.0, 9.0)),
            tilt=(53 * degree, Wobble.draw(rng, 10 * degree, 9.0)),
            sway=three((12 * degree, 7 * degree, 1.5 * degree), 4.5),
            hover=three((0.5, 0.5, 0.3), 2.5),
            shake=three((0.22 * degree, 0.22 * degree, 0.2 * degree), 0.5),
        )

    def camera(
        self, time: float, target: Callable[[float], FloatArray], size: tuple[int, int]
    ) -> Camera:
        """The camera at ``time``; ``target`` gives the (x, y, heading) of a time."""
        away = self.range[0] + self.range[1](time)
        tilt = self.tilt[0] + self.tilt[1](time)
        bearing = self.bearing + self.orbit * (time - self.abeam)
        out = away * math.cos(tilt)
        offset = np.array([out * math.cos(bearing), out * math.sin(bearing), away * math.sin(tilt)])
        place = np.array([*target(time - self.lag)[:2], 0.0]) + offset
        place += [hover(time) for hover in self.hover]
        turn = [a(time) + b(time) for a, b in zip(self.sway, self.shake, strict=True)]
        return Camera.aimed(place, bearing + math.pi + turn[0], tilt + turn[1], turn[2], size)


@dataclass(frozen=True)
class Sensor:
    """What the camera adds: light that drifts, vignetting, blur, noise."""

    light: Wobble
    warmth: Wobble

    def expose(
        self, image: Image, time: float, flow: FloatArray, rng: np.random.Generator
    ) -> Image:
        """``image`` as recorded while the scene moves by ``flow`` = (du, dv) pixels."""
        image = _blur(image, flow)
        height, width = image.shape[:2]
        gain = 1 + self.light(time)
        tint = np.array([1 - self.warmth(time), 1.0, 1 + self.warmth(time)], dtype=np.float32)
        u = (np.arange(width, dtype=np.float32) + 0.5) / width * 2 - 1
        v = (np.arange(height, dtype=np.float32) + 0.5) / height * 2 - 1
        fall = gain * (1 - 0.09 * (u[None, :] ** 2 + v[:, None] ** 2))
        noise = 2.2 * rng.standard_normal((height, width), dtype=np.float32)
        exposed = image * (fall[..., None] * tint) + noise[..., None]
        return np.asarray(np.clip(exposed, 0, 255), dtype=np.uint8)


def _blur(image: Image, flow: FloatArray) -> Image:
    """``image`` averaged along a straight path of ``flow`` pixels about each pixel."""
    radius = math.ceil(float(np.abs(flow).max()) / 2)
    if radius == 0:
        return image
    kernel = np.zeros((2 * radius + 1, 2 * radius + 1), np.float32)
    for step in np.linspace(-0.5, 0.5, 15):
        u, v = radius + step * flow
        iu, iv = min(int(u), 2 * radius - 1), min(int(v), 2 * radius - 1)
        fu, fv = u - iu, v - iv
        kernel[iv : iv + 2, iu : iu + 2] += np.outer([1 - fv, fv], [1 - fu, fu])
    return np.asarray(cv2.filter2D(image, -1, kernel / kernel.sum()), dtype=np.uint8)


@dataclass(frozen=True)
class Flight:
    """One flight: who drives where, where the drone is, and what its camera sees.

    Attributes:
        seed: everything random follows from it.
        frames, fps, size: length, frames a second, (width, height) in pixels.
        roads: the first is the target's.
        target: the car that is followed.
        traffic: the other cars that drive.
        parked: the cars beside the roads.
        path, sun: of the drone; unit vector towards the sun.
        sensor: None for a perfect camera.
        occluder: the tree that the target passes behind, if any.
    """

    seed: int
    frames: int
    fps: float
    size: tuple[int, int]
    roads: list[Road]
    target: Car
    traffic: list[Car]
    parked: list[Mesh]
    path: Path
    sun: FloatArray
    sensor: Sensor | None
    occluder: Tree | None

    def time(self, index: int) -> float:
        """Seconds since the first frame; raises IndexError outside the flight."""
        if not 0 <= index < self.frames:
            raise IndexError(f"frame {index} of a flight of {self.frames} frames")
        return index / self.fps

    def camera(self, time: float) -> Camera:
        return self.path.camera(time, self.target.pose, self.size)

    def box(self, index: int) -> Box | None:
        """The target's outline at frame ``index``, cut at the image's edges; None outside it.

        What hides the target does not change its box.
        """
        time = self.time(index)
        pixels, depth = self.camera(time).project(self.target.at(time).corners.reshape(-1, 3))
        if depth.min() < NEAR:
            return None
        low, high = pixels.min(axis=0), pixels.max(axis=0)
        box = clip_to_frame(Box(*low.tolist(), *(high - low).tolist()), self.size)
        return box if box.w > 0 and box.h > 0 else None

    def hidden_share(self, index: int) -> float:
        """The part of the target's outline, 0..1, that the tree hides at frame ``index``."""
        if self.occluder is None:
            return 0.0
        time = self.time(index)
        return _hidden_share(self.camera(time), self.target.at(time), self.occluder)

    @cached_property
    def world(self) -> World:
        """Built when the first frame is asked for; about a second of work."""
        extras: list[Solid] = [*self.parked]
        if self.occluder is not None:
            extras.append(self.occluder)
        return build_world(_stream(self.seed, "world"), self.sun, self.roads, extras)

    def frame(self, index: int) -> Image:
        """(height, width, 3) BGR image of frame ``index``."""
        time = self.time(index)
        camera = self.camera(time)
        canvas = _draw_ground(camera, self.world.texture)
        middle = camera.ground_point((self.size[0] / 2, self.size[1] / 2))
        cars = [car.at(time) for car in (self.target, *self.traffic)]
        places = np.array([car.middle for car in cars])
        for _, car in _visible(camera, middle, cars, places):
            _draw_shadow(canvas, camera, car, self.sun)
        solids = [*self.world.solids, *cars]
        places = np.concatenate([self.world.places, places])
        for _, solid in sorted(_visible(camera, middle, solids, places), key=lambda it: -it[0]):
            if isinstance(solid, Tree):
                _draw_tree(canvas, camera, solid)
            else:
                _draw_mesh(canvas, camera, solid, self.sun)
        image = np.asarray(cv2.resize(canvas, self.size, interpolation=cv2.INTER_AREA), np.uint8)
        if self.sensor is None:
            return image
        ground = np.array([*middle, 0.0])
        opened, closed = (
            self.camera(time + way * SHUTTER / 2).project(ground)[0] for way in (-1, 1)
        )
        return self.sensor.expose(image, time, closed - opened, _stream(self.seed, "noise", index))


def _draw_ground(camera: Camera, texture: Image) -> Image:
    """The enlarged canvas with the ground on it."""
    width, height = camera.size[0] * SUPERSAMPLING, camera.size[1] * SUPERSAMPLING
    # Start from the copy of the world below the drone: large coordinates would cost precision.
    corner = np.floor(camera.position[:2] / PERIOD) * PERIOD
    texel = 1 / TEXELS_PER_METRE
    metres = np.array(
        [[texel, 0, corner[0] + texel / 2], [0, texel, corner[1] + texel / 2], [0, 0, 1]]
    )
    canvas = np.array([[SUPERSAMPLING, 0, -0.5], [0, SUPERSAMPLING, -0.5], [0, 0, 1.0]])
    return np.asarray(
        cv2.warpPerspective(
            texture,
            canvas @ camera.ground_homography() @ metres,
            (width, height),
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_WRAP,
        ),
        np.uint8,
    )


def _visible(
    camera: Camera, middle: FloatArray, solids: list[AnySolid], places: FloatArray
) -> Iterator[tuple[float, AnySolid]]:
    """The solids that may be in the picture, with their distance from the camera in metres.

    Each is taken in its copy that is nearest to ``middle``, the (2,) ground point looked at.

    Args:
        places: (N, 3) middles of ``solids``.
    """
    shifts = PERIOD * np.round((middle - places[:, :2]) / PERIOD)
    near = np.column_stack([places[:, :2] + shifts, places[:, 2]])
    pixels, depth = camera.project(near)
    from_middle = np.abs(pixels - np.array(camera.size) / 2)
    margin = LARGEST_REACH * camera.focal / np.maximum(depth, NEAR)
    seen = (depth > NEAR) & (from_middle < np.array(camera.size) / 2 + margin[:, None]).all(axis=1)
    for index in np.flatnonzero(seen):
        distance = float(np.linalg.norm(near[index] - camera.position))
        yield distance, solids[index].moved(shifts[index])


def _hidden_share(camera: Camera, target: Mesh, tree: Tree) -> float:
    """The part of the target's outline, 0..1, that lies behind the tree."""
    width, height = camera.size
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING, 3), np.uint8)
    white = Mesh(target.corners, np.full_like(target.colours, 1e4))
    _draw_mesh(canvas, camera, white, np.array([0.0, 0.0, 1.0]))
    whole = np.count_nonzero(canvas[..., 0])
    dark = Tree(tree.root, tree.leaves, tree.radii, np.zeros_like(tree.colours))
    _draw_tree(canvas, camera, dark)
    return 1 - np.count_nonzero(canvas[..., 0] == 255) / whole if whole else 0.0


# --- composition --------------------------------------------------------------------------------


def _stream(seed: int, purpose: str, index: int = 0) -> np.random.Generator:
    """Random numbers of their own for each purpose, so that one option never shifts another."""
    purposes = ("plan", "traffic", "parked", "occluder", "sensor", "world", "noise")
    return np.random.default_rng([seed, purposes.index(purpose), index])


def _draw_roads(rng: np.random.Generator) -> list[Road]:
    """Two roads east, two north, half a period apart; the first is the target's."""
    return [
        Road.draw(rng, along_y, offset)
        for along_y in (False, True)
        for offset in (PERIOD / 4, PERIOD * 3 / 4)
    ]


def _start_of_target(rng: np.random.Generator, roads: list[Road], travelled: float) -> float:
    """Where the target starts, so that after ``travelled`` metres it is clear of junctions."""

    def room(start: float) -> float:
        place = roads[0].poses(np.array([start + travelled]))[:, :2]
        return min(float(road.distance(place)[0]) for road in roads[1:])

    return max((float(start) for start in rng.uniform(0, roads[0].length, 12)), key=room)


def _draw_traffic(rng: np.random.Generator, target: Car, paint: Colour, count: int) -> list[Car]:
    """``count`` cars, in turn in the target's lane and in the other one, half of them painted
    like the target."""
    cars: list[Car] = []
    oncoming = Cruise(rng.uniform(7, 12), Wobble.draw(rng, 1.5, 7.0))
    spacing = target.road.length / max(count // 2, 1)
    for number in range(count):
        rank = number // 2 + 1
        same_lane = number % 2 == 0
        alike = same_lane == (rank % 2 == 1)
        mesh = car_mesh(tint(rng, [paint] if alike else CAR_PAINTS, 10))
        if same_lane:
            gap = (rank + 1) // 2 * rng.uniform(11, 15) * (1 if rank % 2 else -1)
            cars.append(Car(mesh, target.road, target.start + gap, -LANE, True, target.cruise))
        else:
            start = target.start + spacing * (rank + rng.uniform(-0.2, 0.2))
            cars.append(Car(mesh, target.road, start, LANE, False, oncoming))
    return cars


def _draw_parked(rng: np.random.Generator, roads: list[Road], paint: Colour) -> list[Mesh]:
    """Cars beside the roads, away from junctions, one in four painted like the target."""
    cars = []
    for road in roads:
        others = [other for other in roads if other is not road]
        for start in np.arange(0, road.length - 8, 8.0):
            left = rng.choice([-KERB, KERB])
            x, y, heading = road.poses(start + rng.uniform(-1, 1), left)
            clear = min(float(other.distance(np.array([[x, y]]))[0]) for other in others)
            if clear > KERB + CAR_LENGTH and rng.random() < 0.35:
                mesh = car_mesh(tint(rng, [paint] if rng.random() < 0.25 else CAR_PAINTS, 10))
                cars.append(mesh.placed(x, y, heading if left < 0 else heading + math.pi))
    return cars


def _draw_occluder(
    rng: np.random.Generator, camera: Camera, target: Mesh, sun: FloatArray, share: float
) -> Tree:
    """A tree between target and camera that hides ``share`` of the target's outline.

    It stands where the whole target is hidden and is moved towards the camera until only
    ``share`` is.
    """
    ground = np.array([1.0, 1.0, 0.0])
    place = target.corners.reshape(-1, 3).mean(axis=0)
    sight = (camera.position - place) * ground
    towards = sight[:2] / np.linalg.norm(sight[:2])
    tree = Tree.grown(rng, place[:2], 6.6, 2.9, sun)
    behind = float(np.linalg.norm(sight)) / camera.position[2] * float(tree.leaves[:, 2].mean())
    near, far = behind, behind + 9.0
    for _ in range(9):
        middle = (near + far) / 2
        hidden = _hidden_share(camera, target, tree.moved(towards * middle))
        near, far = (middle, far) if hidden > share else (near, middle)
    return tree.moved(towards * far)


CAR_PAINTS: list[Colour] = [
    (215, 218, 220),
    (168, 172, 174),
    (58, 56, 54),
    (110, 112, 112),
    (44, 40, 150),
    (140, 84, 40),
    (96, 128, 150),
    (70, 92, 60),
]


def plan_flight(
    seed: int,
    frames: int = 240,
    size: tuple[int, int] = (640, 480),
    fps: float = 30.0,
    *,
    occlusion: float = 0.35,
    traffic: int = 8,
    sensor: bool = True,
) -> Flight:
    """The flight that `render_flight` renders; its arguments are described there."""
    if seed < 0 or frames < 1 or min(size) < 16 or not fps > 0:
        raise DataError(
            f"a flight needs seed >= 0, frames >= 1, a size of at least 16x16 and "
            f"fps > 0, not seed={seed}, frames={frames}, size={size}, fps={fps}"
        )
    if not 0 <= occlusion <= 0.95 or traffic < 0:
        raise DataError(
            f"a flight needs occlusion in 0..0.95 and traffic >= 0, "
            f"not occlusion={occlusion}, traffic={traffic}"
        )
    rng = _stream(seed, "plan")
    roads, abeam = _draw_roads(rng), frames / fps / 2
    azimuth, height = rng.uniform(0, 2 * math.pi), math.radians(rng.uniform(38, 58))
    sun = np.array(
        [
            math.cos(height) * math.cos(azimuth),
            math.cos(height) * math.sin(azimuth),
            math.sin(height),
        ]
    )
    cruise = Cruise(rng.uniform(7.5, 11.5), Wobble.draw(rng, 2.0, 6.0))
    paint = tint(rng, CAR_PAINTS, 8)
    start = _start_of_target(rng, roads, cruise(abeam))
    target = Car(car_mesh(paint), roads[0], start, -LANE, True, cruise)
    kerbside = target.pose(abeam)[2] - math.pi / 2 + rng.uniform(-0.35, 0.35)
    path = Path.draw(rng, kerbside, abeam)
    others = _draw_traffic(_stream(seed, "traffic"), target, paint, traffic)
    parked = _draw_parked(_stream(seed, "parked"), roads, paint) if traffic else []
    occluder = None
    if occlusion:
        occluder = _draw_occluder(
            _stream(seed, "occluder"),
            path.camera(abeam, target.pose, size),
            target.at(abeam),
            sun,
            occlusion,
        )
    sensing = _stream(seed, "sensor")
    added = Sensor(Wobble.draw(sensing, 0.07, 8.0), Wobble.draw(sensing, 0.02, 11.0))
    return Flight(
        seed,
        frames,
        fps,
        size,
        roads,
        target,
        others,
        parked,
        path,
        sun,
        added if sensor else None,
        occluder,
    )


def render_flight(
    seed: int,
    frames: int = 240,
    size: tuple[int, int] = (640, 480),
    fps: float = 30.0,
    *,
    occlusion: float = 0.35,
    traffic: int = 8,
    sensor: bool = True,
) -> Sequence:
    """A flight over a procedural landscape as a sequence; frames are drawn when asked for.

    Args:
        seed: the same seed gives the same bytes, another one another landscape and flight.
        frames: how many; the target is abeam of the drone, and behind the tree, half-way.
        size: (width, height) in pixels.
        fps: frames a second.
        occlusion: about the part of the target's outline, 0..0.95, that a tree hides half-way;
            nothing else that stands still ever hides the target. A flight longer than a lap
            of the road (about `PERIOD` metres) passes the tree again.
        traffic: driving cars around the target, half of them painted like it; with 0 there are
            no parked ones either.
        sensor: add blur, noise, vignetting and drifting light.

    Raises:
        DataError: an argument is out of range.
    """
    flight = plan_flight(
        seed, frames, size, fps, occlusion=occlusion, traffic=traffic, sensor=sensor
    )
    boxes = [flight.box(index) or (math.nan,) * 4 for index in range(frames)]
    return Sequence(
        name=f"flight_{seed}",
        boxes=np.array(boxes, dtype=np.float64),
        stamps=np.arange(frames) / fps,
        load=flight.frame,
        origin=f"rendered flight, seed {seed}",
    )
