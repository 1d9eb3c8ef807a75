"""The procedural landscape of a rendered flight: fields, roads, houses, trees, and their shadows.

The world is a square of `PERIOD` metres that repeats in both directions, so that a flight never
reaches an edge. Its ground is one texture; what stands on it is solids. All is a pure function of
the random generator that comes in.

Frames and units: metres, radians. World x east, y north, z up, ground at z = 0. A heading is
counter-clockwise from east.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import numpy.typing as npt

from vil_tracker_core.geometry import FloatArray, Image

PERIOD = 192.0
"""Side of the world's repeating square, metres."""
TEXELS_PER_METRE = 12
TEXTURE_SIZE = int(PERIOD * TEXELS_PER_METRE)

LANE = 2.0
"""From a road's centre line to the middle of a lane, metres."""
ROAD_HALF_WIDTH = 4.2
KERB = 6.1
"""From a road's centre line to the cars parked beside it, metres."""
CAR_LENGTH, CAR_WIDTH, CAR_HEIGHT = 4.7, 1.95, 1.75
LOWEST_SIGHT = 1.5
"""Cotangent of the flattest sight line to the target; what is this many times its own height away
from the target's road cannot hide the target."""

Colour = tuple[float, float, float]
Float32Array = npt.NDArray[np.float32]


# --- solids -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mesh:
    """Flat quads in painting order, each convex, turning counter-clockwise seen from outside.

    Attributes:
        corners: (F, 4, 3) metres; a triangle repeats a corner.
        colours: (F, 3) BGR 0..255 in full light.
    """

    corners: FloatArray
    colours: FloatArray

    @classmethod
    def of(cls, faces: list[tuple[npt.ArrayLike, Colour]]) -> Mesh:
        return cls(
            np.array([corners for corners, _ in faces], dtype=np.float64),
            np.array([colour for _, colour in faces], dtype=np.float64),
        )

    @property
    def middle(self) -> FloatArray:
        """(3,) metres."""
        return np.asarray(self.corners.mean(axis=(0, 1)))

    def moved(self, shift: FloatArray) -> Mesh:
        """The mesh ``shift`` = (dx, dy) metres further."""
        return Mesh(self.corners + np.array([*shift, 0.0]), self.colours)

    def placed(self, x: float, y: float, heading: float) -> Mesh:
        """The mesh turned by ``heading`` about the vertical, then moved to (x, y)."""
        c, s = math.cos(heading), math.sin(heading)
        turn = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1.0]])
        return Mesh(self.corners @ turn.T + np.array([x, y, 0.0]), self.colours)

    def normals(self) -> FloatArray:
        """(F, 3) unit vectors that point outwards."""
        a, b, c = self.corners[:, 0], self.corners[:, 1], self.corners[:, 2]
        normal = np.cross(b - a, c - a)
        return np.asarray(normal / np.linalg.norm(normal, axis=1, keepdims=True))


def _loft(
    rings: list[FloatArray], sides: list[Colour], top: Colour
) -> list[tuple[npt.ArrayLike, Colour]]:
    """Faces between (8, 3) rings, lowest first, closed on top; ``sides`` has one colour a gap."""
    faces: list[tuple[npt.ArrayLike, Colour]] = []
    for low, high, colour in zip(rings[:-1], rings[1:], sides, strict=True):
        for i in range(8):
            j = (i + 1) % 8
            faces.append(([low[i], low[j], high[j], high[i]], colour))
    cap = rings[-1]
    return faces + [
        ([cap[i] for i in ring], top) for ring in ((0, 1, 2, 3), (3, 4, 7, 0), (4, 5, 6, 7))
    ]


def _ring(z: float, back: float, front: float, width: float, chamfer: float) -> FloatArray:
    """(8, 3) a level rectangle from x = ``back`` to ``front`` with cut corners, from above
    counter-clockwise."""
    x0, x1, y, c = back, front, width / 2, chamfer
    plan = [
        (x1, y - c),
        (x1 - c, y),
        (x0 + c, y),
        (x0, y - c),
        (x0, c - y),
        (x0 + c, -y),
        (x1 - c, -y),
        (x1, c - y),
    ]
    return np.array([(px, py, z) for px, py in plan])


def _panel(x: float, y0: float, y1: float, z0: float, z1: float) -> FloatArray:
    """(4, 3) an upright rectangle across the car at ``x``, facing away from the car's middle."""
    if x < 0:
        y0, y1 = y1, y0
    return np.array([(x, y0, z0), (x, y1, z0), (x, y1, z1), (x, y0, z1)])


def car_mesh(paint: Colour) -> Mesh:
    """A car on the ground at the origin, its nose towards +x."""
    nose, tail, width, height = CAR_LENGTH / 2, -CAR_LENGTH / 2, CAR_WIDTH, CAR_HEIGHT
    glass, dark = (62.0, 52.0, 44.0), (28.0, 28.0, 28.0)
    faces = _loft(
        [
            _ring(0.22, tail + 0.2, nose - 0.2, width - 0.3, 0.4),
            _ring(0.38, tail, nose, width, 0.35),
            _ring(0.78, tail, nose, width, 0.35),
            _ring(0.98, tail + 0.12, nose - 0.25, width - 0.2, 0.35),
        ],
        [dark, paint, paint],
        paint,
    )
    for middle in (0.31 * CAR_LENGTH, -0.3 * CAR_LENGTH):
        x0, x1, y = middle - 0.34, middle + 0.34, width / 2
        faces.append(([(x1, y, 0.0), (x0, y, 0.0), (x0, y, 0.66), (x1, y, 0.66)], dark))
        faces.append(([(x0, -y, 0.0), (x1, -y, 0.0), (x1, -y, 0.66), (x0, -y, 0.66)], dark))
    for side in (-1, 1):
        y0, y1 = sorted((side * 0.28, side * 0.6))
        faces.append((_panel(nose, y0, y1, 0.58, 0.74), (235.0, 245.0, 245.0)))
        faces.append((_panel(tail, y0, y1, 0.58, 0.76), (35.0, 30.0, 190.0)))
    belt = _ring(0.98, tail + 0.3, nose - 1.25, width - 0.22, 0.2)
    roof = _ring(height, tail + 0.75, nose - 2.05, width - 0.55, 0.2)
    return Mesh.of(faces + _loft([belt, roof], [glass], paint))


def house_mesh(
    rng: np.random.Generator, length: float, width: float, wall: float, ridge: float
) -> Mesh:
    """A gabled house about the origin: walls with windows, a roof of tile rows, a chimney.

    Args:
        rng: draws the colours.
        length, width: of the roof, metres; the ridge runs along x.
        wall, ridge: heights of the eaves and of the ridge, metres.
    """
    plaster = tint(rng, [(205, 214, 222), (190, 205, 215), (150, 180, 205), (120, 135, 170)], 8)
    tiles = tint(rng, [(62, 78, 140), (70, 72, 84), (58, 66, 112), (92, 96, 104)], 8)
    x, y, eave = length / 2 - 0.4, width / 2 - 0.4, 0.25
    faces: list[tuple[npt.ArrayLike, Colour]] = []
    plan = [(-x, -y), (x, -y), (x, y), (-x, y)]
    for (ax, ay), (bx, by) in zip(plan, plan[1:] + plan[:1], strict=True):
        faces.append(([(ax, ay, 0), (bx, by, 0), (bx, by, wall), (ax, ay, wall)], plaster))
        for at in (0.22, 0.5, 0.78):
            half = 0.55 / math.hypot(bx - ax, by - ay)
            p, q = ((ax + (bx - ax) * s, ay + (by - ay) * s) for s in (at - half, at + half))
            sill, head = wall - 1.7, wall - 0.6
            faces.append(([(*p, sill), (*q, sill), (*q, head), (*p, head)], (70.0, 62.0, 56.0)))
    for end, way in ((x, 1), (-x, -1)):
        faces.append(
            (
                [
                    (end, -y * way, wall),
                    (end, y * way, wall),
                    (end, 0, ridge - eave),
                    (end, 0, ridge - eave),
                ],
                plaster,
            )
        )
    rows = 12
    for way in (1, -1):
        for low, high in zip(
            np.linspace(0, 1, rows + 1)[:-1], np.linspace(0, 1, rows + 1)[1:], strict=True
        ):
            ends = [
                (way * length / 2, -way * (1 - s) * width / 2, wall + s * (ridge - wall))
                for s in (low, high)
            ]
            (bx, by, bz), (tx, ty, tz) = ends
            faces.append(
                ([(-bx, by, bz), (bx, by, bz), (tx, ty, tz), (-tx, ty, tz)], tint(rng, [tiles], 9))
            )
    stack = [_ring(z, x - 2.2, x - 1.5, 0.6, 0.01) for z in (ridge - 0.4, ridge + 0.7)]
    return Mesh.of(faces + _loft(stack, [(70.0, 80.0, 120.0)], (50.0, 50.0, 50.0)))


@dataclass(frozen=True)
class Tree:
    """A trunk and a crown of leaf balls.

    Attributes:
        root: (2,) where the trunk leaves the ground, metres.
        leaves: (B, 3) centres of the balls, metres.
        radii: (B,) metres.
        colours: (B, 3) BGR as lit by the sun.
    """

    root: FloatArray
    leaves: FloatArray
    radii: FloatArray
    colours: FloatArray

    @classmethod
    def grown(
        cls,
        rng: np.random.Generator,
        root: FloatArray,
        height: float,
        radius: float,
        sun: FloatArray,
    ) -> Tree:
        """A tree ``height`` metres high with a crown of ``radius`` metres, lit from ``sun``."""
        count = int(60 + 45 * radius)
        outward = rng.normal(size=(count, 3))
        outward[:, 2] = np.abs(outward[:, 2]) - 0.35
        outward /= np.linalg.norm(outward, axis=1, keepdims=True)
        reach = radius * 0.86 * rng.uniform(0.55, 1.0, (count, 1)) ** 0.5
        flat = np.array([1.0, 1.0, 0.8])
        middle = np.array([*root, height - 0.85 * radius])
        light = 0.42 + 0.5 * np.clip(outward @ sun, 0, 1) + 0.22 * outward[:, 2]
        light *= rng.uniform(0.72, 1.2, count)
        base = tint(rng, [(48, 112, 84), (44, 98, 66), (58, 118, 102), (40, 84, 70)], 7)
        leaves = middle + outward * reach * flat
        radii = radius * rng.uniform(0.1, 0.2, count)
        colours = np.clip(light[:, None] * np.array(base) * 1.25, 0, 255)
        core = np.array(base) * 0.4  # so that one cannot see through
        return cls(
            root,
            np.vstack([middle, leaves]),
            np.append(0.6 * radius, radii),
            np.vstack([core, colours]),
        )

    @property
    def middle(self) -> FloatArray:
        """(3,) metres."""
        return np.asarray(self.leaves.mean(axis=0))

    def moved(self, shift: FloatArray) -> Tree:
        """The tree ``shift`` = (dx, dy) metres further."""
        return Tree(
            self.root + shift, self.leaves + np.array([*shift, 0.0]), self.radii, self.colours
        )


def tint(
    rng: np.random.Generator, palette: list[Colour] | list[tuple[int, int, int]], spread: float
) -> Colour:
    """One colour of ``palette``, brightness off by up to ``spread`` grey levels."""
    shade = rng.uniform(-spread, spread)
    b, g, r = palette[int(rng.integers(len(palette)))]
    return b + shade, g + shade, r + shade


Solid = Mesh | Tree


# --- roads --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Road:
    """A two-lane road that meanders along one axis of the world and repeats with it.

    Attributes:
        along_y: the road runs north; otherwise east.
        offset: mean distance from the axis that it runs along, metres.
        bends: (2,) sizes of the bends that repeat once and twice a period, metres.
        phases: (2,) radians.
    """

    along_y: bool
    offset: float
    bends: FloatArray
    phases: FloatArray

    @classmethod
    def draw(cls, rng: np.random.Generator, along_y: bool, offset: float) -> Road:
        return cls(
            along_y,
            offset + rng.uniform(-6, 6),
            rng.uniform([5, 1.5], [9, 3]),
            rng.uniform(0, 2 * math.pi, 2),
        )

    @cached_property
    def _table(self) -> tuple[FloatArray, FloatArray]:
        """Distance driven at each of many steps along the axis, both metres."""
        axis = np.linspace(0, PERIOD, 1025)
        steps = np.hypot(np.diff(axis), np.diff(self._across(axis)))
        return np.concatenate([[0.0], np.cumsum(steps)]), axis

    @cached_property
    def _centre(self) -> FloatArray:
        """(256, 2) points of one period's centre line."""
        return self.poses(np.linspace(0, self.length, 256, endpoint=False))[:, :2]

    @property
    def length(self) -> float:
        """Metres of road in one period."""
        return float(self._table[0][-1])

    def _across(self, axis: FloatArray) -> FloatArray:
        angle = 2 * math.pi / PERIOD * np.multiply.outer(axis, [1.0, 2.0]) + self.phases
        return np.asarray(self.offset + np.sin(angle) @ self.bends)

    def poses(self, driven: npt.ArrayLike, left: npt.ArrayLike = 0.0) -> FloatArray:
        """(N, 3) of (x, y, heading), ``driven`` metres along the road, ``left`` metres left of
        its centre line; both broadcast."""
        distance, axis_of = self._table
        laps, rest = np.divmod(np.asarray(driven, dtype=np.float64), self.length)
        axis = np.interp(rest, distance, axis_of)
        across = self._across(axis)
        angle = 2 * math.pi / PERIOD * np.multiply.outer(axis, [1.0, 2.0]) + self.phases
        slope = np.cos(angle) @ (self.bends * np.array([1.0, 2.0])) * 2 * math.pi / PERIOD
        x, y, heading = axis + laps * PERIOD, across, np.arctan(slope)
        if self.along_y:
            x, y, heading = y, x, math.pi / 2 - heading
        return np.stack(
            np.broadcast_arrays(x - left * np.sin(heading), y + left * np.cos(heading), heading),
            axis=-1,
        )

    def distance(self, points: FloatArray) -> FloatArray:
        """(N,) metres from ground points (N, 2) to the centre line, in the repeating world."""
        apart = _nearest_copy(points[:, None] - self._centre)
        return np.asarray(np.linalg.norm(apart, axis=-1).min(axis=1))

    def strip(self, start: float, stop: float, right: float, left: float) -> FloatArray:
        """(1, N, 2) outline of the road's surface from ``start`` to ``stop`` metres driven, between
        two offsets to the left of the centre line."""
        driven = np.linspace(start, stop, max(2, math.ceil((stop - start) / 1.5)))
        there, back = self.poses(driven, right), self.poses(driven[::-1], left)
        return np.concatenate([there, back])[None, :, :2]


def _nearest_copy(apart: FloatArray) -> FloatArray:
    """The shortest of the equivalent differences (..., 2) between points of a repeating world."""
    return np.asarray(apart - PERIOD * np.round(apart / PERIOD))


# --- ground -------------------------------------------------------------------------------------


def _noise(rng: np.random.Generator, cells: int, size: int = TEXTURE_SIZE) -> Float32Array:
    """(size, size) smooth noise of zero mean and unit variance that repeats without a seam;
    ``size`` is a multiple of ``cells``."""
    return _enlarge(rng.standard_normal((cells, cells), dtype=np.float32), size)


def _enlarge(grid: Float32Array, size: int) -> Float32Array:
    """A repeating (n, n[, C]) grid resampled to (size, size[, C])."""
    factor, pad = size // len(grid), 2
    padded = np.pad(grid, [(pad, pad), (pad, pad), (0, 0)][: grid.ndim], mode="wrap")
    side = len(padded) * factor
    large = cv2.resize(padded, (side, side), interpolation=cv2.INTER_CUBIC)
    edge = pad * factor
    return np.asarray(large[edge : edge + size, edge : edge + size], dtype=np.float32)


def _fields(rng: np.random.Generator) -> Float32Array:
    """(T, T, 3) colours of meadows, crops and bare soil, with furrows, without any road."""
    coarse, count = TEXTURE_SIZE // 4, 18
    palette = np.array(
        [
            (62, 118, 100),
            (70, 128, 112),
            (78, 132, 124),
            (92, 150, 158),
            (110, 160, 178),
            (92, 116, 140),
            (56, 104, 84),
        ],
        dtype=np.float32,
    )
    step = PERIOD / coarse
    axis = ((np.arange(coarse) + 0.5) * step).astype(np.float32)
    bend = [_noise(rng, 24, coarse) * 1.2 + _noise(rng, 96, coarse) * 0.25 for _ in range(2)]
    x, y = axis[None, :] + bend[0], axis[:, None] + bend[1]
    nearest = np.full((coarse, coarse), np.inf, np.float32)
    label = np.zeros((coarse, coarse), np.int64)
    for index, (sx, sy) in enumerate(rng.uniform(0, PERIOD, (count, 2)).astype(np.float32)):
        dx, dy = np.abs(x - sx), np.abs(y - sy)
        dx, dy = np.minimum(dx, np.abs(PERIOD - dx)), np.minimum(dy, np.abs(PERIOD - dy))
        away = np.maximum(dx, dy) + 0.35 * np.minimum(dx, dy)  # corners rather than curves
        label[away < nearest] = index
        nearest = np.minimum(away, nearest)
    kind = rng.integers(len(palette), size=count)
    colours = _enlarge(palette[kind][label], TEXTURE_SIZE)
    # Whole numbers of waves a period keep the furrows seamless.
    waves = rng.integers(-150, 151, (count, 2))
    depth = rng.uniform(0.0, 0.1, count) * (kind >= 2)
    place = (np.arange(TEXTURE_SIZE, dtype=np.float32) + 0.5) * (2 * math.pi / TEXTURE_SIZE)
    furrows = _blocks(depth[label]) * np.sin(
        _blocks(waves[:, 0][label]) * place[None, :] + _blocks(waves[:, 1][label]) * place[:, None]
    )
    mottle = 0.07 * _noise(rng, 16) + 0.06 * _noise(rng, 64) + 0.06 * _noise(rng, 256)
    return np.asarray(colours * (1 + furrows + mottle)[..., None], dtype=np.float32)


def _blocks(grid: npt.NDArray[np.generic]) -> Float32Array:
    """(n, n) values repeated to the texture's size."""
    factor = TEXTURE_SIZE // len(grid)
    return np.asarray(grid, np.float32).repeat(factor, 0).repeat(factor, 1)


def _fill(texture: npt.NDArray[np.uint8], outlines: FloatArray, colour: Colour) -> None:
    """Fills outlines (K, N, 2) in metres, and their copies that reach into the texture."""
    low, high = outlines.min(axis=(0, -2)), outlines.max(axis=(0, -2))
    for copy in np.ndindex(3, 3):
        shift = (np.array(copy) - 1) * PERIOD
        if (high + shift > 0).all() and (low + shift < PERIOD).all():
            texels = np.round(((outlines + shift) * TEXELS_PER_METRE - 0.5) * 16).astype(np.int32)
            for outline in texels:
                cv2.fillPoly(texture, [outline], colour, cv2.LINE_AA, 4)


def _paint_roads(texture: Image, rng: np.random.Generator, roads: list[Road]) -> None:
    """Verges, asphalt, patches, worn tracks, lane marks; no marks where roads cross."""
    layers: list[tuple[float, float, Colour]] = [
        (-7.4, 7.4, (112, 138, 148)),
        (-ROAD_HALF_WIDTH, ROAD_HALF_WIDTH, (104, 101, 99)),
    ]
    for right, left, colour in layers:
        for road in roads:
            _fill(texture, road.strip(0, road.length + 1, right, left), colour)
    for road in roads:
        for track in (-LANE - 0.8, -LANE + 0.8, LANE - 0.8, LANE + 0.8):
            _fill(texture, road.strip(0, road.length + 1, track - 0.25, track + 0.25), (97, 94, 92))
        for _ in range(14):
            start, left = rng.uniform(0, road.length), rng.uniform(-3, 1)
            shade = rng.uniform(72, 118)
            _fill(
                texture,
                road.strip(start, start + rng.uniform(1, 7), left, left + 1.8),
                (shade, shade, shade),
            )
    for road in roads:
        others = [other for other in roads if other is not road]
        for start in np.arange(0, road.length - 2, 2.0):
            middle = road.poses(np.array([start + 1.0]))[:, :2]
            if min(float(other.distance(middle)[0]) for other in others) < 7.5:
                continue
            white: Colour = (206, 212, 214)
            for edge in (-3.95, 3.85):
                _fill(texture, road.strip(start, start + 2, edge, edge + 0.1), white)
            if start % 8 < 4:
                _fill(texture, road.strip(start, start + 2, -0.07, 0.07), white)


def _shade(texture: Image, mask: npt.NDArray[np.uint8], rng: np.random.Generator) -> Image:
    """Grain on everything, and shadow where ``mask`` is 255."""
    grain = 0.06 * _noise(rng, TEXTURE_SIZE // 4) + 0.06 * _noise(rng, TEXTURE_SIZE)
    soft = cv2.GaussianBlur(mask, (0, 0), 1.2).astype(np.float32) / 255
    light = (1 + grain) * (1 - 0.52 * soft)
    return np.asarray(np.clip(texture * light[..., None], 0, 255), dtype=np.uint8)


def shadow_points(points: FloatArray, sun: FloatArray) -> FloatArray:
    """(..., 2) where the shadows of ``points`` (..., 3) fall on the ground."""
    return np.asarray(points[..., :2] - points[..., 2:] * sun[:2] / sun[2])


def _cast(mask: npt.NDArray[np.uint8], solid: Solid, sun: FloatArray) -> None:
    """Marks the shadow of ``solid``."""
    white: Colour = (255, 255, 255)
    if isinstance(solid, Mesh):
        feet = shadow_points(solid.corners.reshape(-1, 3), sun).astype(np.float32)
        _fill(mask, cv2.convexHull(feet).reshape(1, -1, 2).astype(np.float64), white)
        return
    around = np.linspace(0, 2 * math.pi, 10, endpoint=False)
    disc = np.column_stack([np.cos(around), np.sin(around)])
    along = sun[:2] / np.linalg.norm(sun[:2])
    ball = disc @ (np.eye(2) + (1 / sun[2] - 1) * np.outer(along, along))
    centres = shadow_points(solid.leaves, sun)
    _fill(mask, centres[:, None] + solid.radii[:, None, None] * ball, white)


# --- the whole ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class World:
    """All that stands still.

    Attributes:
        texture: (T, T, 3) the ground, with the shadows of the solids.
        solids: houses, trees, parked cars.
        places: (N, 3) the solids' middles.
    """

    texture: Image
    solids: list[Solid]
    places: FloatArray


def build_world(
    rng: np.random.Generator, sun: FloatArray, roads: list[Road], extras: list[Solid]
) -> World:
    """The landscape along ``roads``, of which the first is the target's, with ``extras`` in it."""
    houses = _place_houses(rng, roads)
    solids = [*houses, *_place_trees(rng, roads, houses, sun), *extras]
    texture = np.clip(_fields(rng), 0, 255).astype(np.uint8)
    _paint_roads(texture, rng, roads)
    mask = np.zeros(texture.shape[:2], np.uint8)
    for solid in solids:
        _cast(mask, solid, sun)
    return World(_shade(texture, mask, rng), solids, np.array([solid.middle for solid in solids]))


def _place_trees(
    rng: np.random.Generator, roads: list[Road], houses: list[Mesh], sun: FloatArray
) -> list[Tree]:
    """Groves of a few trees each, off roads and houses."""
    trees = []
    spots = [house.middle[:2] for house in houses]
    for grove in rng.uniform(0, PERIOD, (70, 2)):
        for _ in range(int(rng.integers(1, 7))):
            root = grove + rng.normal(0, 5, 2)
            height, radius = rng.uniform(3.0, 8.5), rng.uniform(1.1, 3.2)
            if _is_free(root, radius, height, roads, spots, 9.0):
                trees.append(Tree.grown(rng, root, max(height, 2 * radius), radius, sun))
    return trees


def _is_free(
    spot: FloatArray,
    radius: float,
    height: float,
    roads: list[Road],
    taken: list[FloatArray],
    apart: float,
) -> bool:
    """Whether something may stand there: off the roads, away from ``taken``, and where it cannot
    hide the target, which drives on the first road."""
    room = [float(road.distance(spot[None])[0]) - radius for road in roads]
    if min(room) < KERB + 2 or room[0] < LANE + CAR_WIDTH + LOWEST_SIGHT * height:
        return False
    return all(float(np.linalg.norm(_nearest_copy(spot - other))) > apart for other in taken)


def _place_houses(rng: np.random.Generator, roads: list[Road]) -> list[Mesh]:
    houses: list[Mesh] = []
    spots: list[FloatArray] = []
    for _ in range(160):
        road = roads[int(rng.integers(len(roads)))]
        left = rng.choice([-1.0, 1.0]) * rng.uniform(15, 26)
        x, y, heading = road.poses(rng.uniform(0, road.length), left)
        length, width = rng.uniform(9, 14), rng.uniform(7, 9.5)
        wall, rise = rng.uniform(2.6, 4.2), rng.uniform(1.8, 2.6)
        spot = np.array([x, y])
        if _is_free(spot, length / 2, wall + rise, roads, spots, 17.0):
            spots.append(spot)
            mesh = house_mesh(rng, length, width, wall, wall + rise)
            houses.append(mesh.placed(x, y, heading + rng.choice([0.0, math.pi / 2])))
    return houses
