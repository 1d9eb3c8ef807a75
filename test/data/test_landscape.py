"""The landscape: a world that repeats, roads that stay free, solids that are closed."""

from __future__ import annotations

import math

import numpy as np
import pytest

from vil_tracker_core.data.landscape import (
    KERB,
    PERIOD,
    TEXELS_PER_METRE,
    TEXTURE_SIZE,
    Mesh,
    Road,
    Tree,
    World,
    build_world,
    car_mesh,
    house_mesh,
    shadow_points,
)
from vil_tracker_core.geometry import FloatArray

SUN = np.array([0.6, 0.0, 0.8])


@pytest.fixture(scope="module")
def roads() -> list[Road]:
    rng = np.random.default_rng(1)
    return [Road.draw(rng, along_y, PERIOD / 2) for along_y in (False, True)]


@pytest.fixture(scope="module")
def world(roads: list[Road]) -> World:
    return build_world(np.random.default_rng(2), SUN, roads, [])


# --- the whole


def test_what_stands_leaves_the_roads_free(roads: list[Road], world: World) -> None:
    assert {type(solid) for solid in world.solids} == {Mesh, Tree}
    assert world.places.shape == (len(world.solids), 3)
    for road in roads:
        assert road.distance(world.places[:, :2]).min() > KERB


def test_the_ground_repeats_without_a_seam(world: World) -> None:
    texture = world.texture.astype(int)
    for axis in (0, 1):
        lines = np.moveaxis(texture, axis, 0)
        seam = np.abs(lines[0] - lines[-1]).mean()
        inside = np.abs(np.diff(lines[::97], axis=0)).mean()  # far apart: unrelated lines
        beside = np.abs(lines[1] - lines[0]).mean()
        assert seam < 1.5 * beside < inside


def test_a_house_changes_only_its_shadow_in_the_same_world(roads: list[Road], world: World) -> None:
    """The same generator gives the same ground; the shadow is darker, and west: the sun is east."""
    house = house_mesh(np.random.default_rng(0), 10, 8, 4, 6).placed(40.0, 150.0, 0.0)
    built = build_world(np.random.default_rng(2), SUN, roads, [house])
    change = built.texture.astype(int).sum(axis=2) - world.texture.sum(axis=2, dtype=int)
    rows, columns = np.nonzero(change)
    x, y = columns / TEXELS_PER_METRE, rows / TEXELS_PER_METRE
    assert len(rows) > 500
    assert change[rows, columns].mean() < -60
    assert np.abs(np.stack([x - 40, y - 150])).max() < 15
    assert x.mean() < 39.5
    assert world.texture.shape == (TEXTURE_SIZE, TEXTURE_SIZE, 3)


def test_a_shadow_is_as_long_as_the_height_over_the_suns_slope() -> None:
    points = shadow_points(np.array([[10.0, 20.0, 4.0], [10.0, 20.0, 0.0]]), SUN)
    np.testing.assert_allclose(points, [[10 - 4 * 0.6 / 0.8, 20], [10, 20]])


# --- solids


@pytest.mark.parametrize("solid", ["car", "house"])
def test_faces_look_outwards(solid: str) -> None:
    rng = np.random.default_rng(0)
    mesh = car_mesh((90, 90, 90)) if solid == "car" else house_mesh(rng, 12, 8, 3, 5)
    normals = mesh.normals()
    np.testing.assert_allclose(np.linalg.norm(normals, axis=1), 1)
    below = mesh.middle * np.array([1, 1, 0])  # both stand open on the ground
    outwards = ((mesh.corners.mean(axis=1) - below) * normals).sum(axis=1)
    assert (outwards > 0).mean() > 0.9  # all but the chimney's inner sides


def test_a_placed_mesh_is_turned_and_moved() -> None:
    car = car_mesh((90, 90, 90))
    north = car.placed(5.0, 7.0, math.pi / 2).corners.reshape(-1, 3)
    plain = car.corners.reshape(-1, 3)
    np.testing.assert_allclose(north[:, 0], 5 - plain[:, 1], atol=1e-12)
    np.testing.assert_allclose(north[:, 1], 7 + plain[:, 0], atol=1e-12)
    np.testing.assert_array_equal(north[:, 2], plain[:, 2])


def test_a_tree_is_as_high_and_wide_as_asked() -> None:
    tree = Tree.grown(np.random.default_rng(0), np.array([3.0, 4.0]), 8.0, 2.5, SUN)
    low, high = tree.leaves - tree.radii[:, None], tree.leaves + tree.radii[:, None]
    assert 7 < high[:, 2].max() < 9
    assert low[:, 2].min() > 0
    assert np.abs(np.array([low[:, 0].min() - 3, high[:, 0].max() - 3])).max() < 1.2 * 2.5


# --- roads


def test_a_roads_lane_is_that_far_from_its_middle(roads: list[Road]) -> None:
    for road in roads:
        lane = road.poses(np.linspace(-300, 500, 40), 3.0)[:, :2]
        np.testing.assert_allclose(road.distance(lane), 3.0, atol=0.15)


def test_a_road_goes_on_over_the_worlds_edge(roads: list[Road]) -> None:
    def step(a: FloatArray, b: FloatArray) -> float:
        return float(np.linalg.norm(b[:2] - a[:2]))

    for road in roads:
        before, after = road.poses(np.array([road.length - 0.5, road.length + 0.5]))
        assert step(before, after) == pytest.approx(1.0, abs=0.01)
        start, lap = road.poses(np.array([10.0, 10.0 + road.length]))
        assert step(start, lap) == pytest.approx(PERIOD)
