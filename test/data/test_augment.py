"""A changed look keeps the picture's size, type and geometry."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pytest

from vil_tracker_core.data.augment import Look, _motion_kernel, coarsened, degrade
from vil_tracker_core.geometry import FloatArray, Image

PLAIN = Look((1.0, 1.0, 1.0), contrast=1.0, gamma=1.0, grey=False)


def photograph(seed: int = 0, side: int = 96) -> Image:
    small = np.random.default_rng(seed).integers(0, 256, size=(6, 6, 3), dtype=np.uint8)
    return np.asarray(cv2.resize(small, (side, side), interpolation=cv2.INTER_LINEAR))


@pytest.mark.parametrize("seed", range(20))
def test_look_keeps_shape_and_type_and_the_original(seed: int) -> None:
    crop = photograph()
    before = crop.copy()
    rng = np.random.default_rng(seed)
    look = Look.random(rng)
    for chosen in (look, look.near(rng)):
        out = chosen.apply(crop)
        assert out.shape == crop.shape
        assert out.dtype == np.uint8
    np.testing.assert_array_equal(crop, before)


def test_plain_look_changes_nothing() -> None:
    levels = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    np.testing.assert_array_equal(PLAIN.apply(levels), levels)


def test_grey_look_is_grey() -> None:
    out = Look((1.1, 0.9, 1.0), 1.1, 0.9, grey=True).apply(photograph())
    assert (out == out[..., :1]).all()
    assert out.std() > 10


def test_gains_belong_to_their_channels() -> None:
    crop = np.full((4, 4, 3), 100, dtype=np.uint8)
    out = Look((0.5, 1.0, 2.0), 1.0, 1.0, grey=False).apply(crop)
    np.testing.assert_allclose(out[0, 0], [50, 100, 200], atol=1)


def test_contrast_and_gamma_by_hand() -> None:
    crop = np.full((4, 4, 3), 64, dtype=np.uint8)
    darker = Look((1.0, 1.0, 1.0), 1.5, 1.0, grey=False).apply(crop)
    assert abs(int(darker[0, 0, 0]) - (1.5 * (64 - 128) + 128)) <= 1
    curved = Look((1.0, 1.0, 1.0), 1.0, 2.0, grey=False).apply(crop)
    assert abs(int(curved[0, 0, 0]) - 255 * (64 / 255) ** 2) <= 1


def test_bright_and_dark_are_clipped_not_wrapped() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8).reshape(16, 16, 1), 3, axis=-1)
    out = Look((1.5, 1.5, 1.5), 1.6, 1.0, grey=False).apply(ramp)[..., 0].ravel().astype(int)
    assert (np.diff(out) >= 0).all()
    assert (out[0], out[-1]) == (0, 255)


def test_random_looks_centre_on_the_plain_one() -> None:
    rng = np.random.default_rng(0)
    looks = [Look.random(rng) for _ in range(400)]
    means = [np.log([*look.gains, look.contrast, look.gamma]) for look in looks]
    np.testing.assert_allclose(np.mean(means, axis=0), 0, atol=0.05)
    grey = sum(look.grey for look in looks)
    assert 15 < grey < 80
    near = looks[0].near(rng)
    assert (near.contrast, near.gamma, near.grey) == (
        looks[0].contrast,
        looks[0].gamma,
        looks[0].grey,
    )
    ratio = np.array(near.gains) / looks[0].gains
    np.testing.assert_allclose(ratio, ratio[0])
    assert 0.8 < ratio[0] < 1.25


each_sensor = pytest.mark.parametrize("coarse", [1.0, 0.43, 0.1])


@each_sensor
@pytest.mark.parametrize("seed", range(20))
def test_degrade_is_a_function_of_the_seed(seed: int, coarse: float) -> None:
    crop = photograph(seed)
    before = crop.copy()
    one, two = (degrade(np.random.default_rng(seed), crop, 30, coarse) for _ in range(2))
    np.testing.assert_array_equal(one, two)
    np.testing.assert_array_equal(crop, before)
    assert one.shape == crop.shape
    assert one.dtype == np.uint8


def test_degrade_often_does_nothing_and_often_something() -> None:
    crop = photograph()
    rng = np.random.default_rng(0)
    same = [np.array_equal(degrade(rng, crop, 30, 1.0), crop) for _ in range(200)]
    assert 50 < sum(same) < 150


def centroid(image: Image) -> FloatArray:
    """(x, y) of what is brighter than the dark ground, weighed by brightness."""
    bright = np.where(image[..., 1] > 60, image[..., 1].astype(np.float64), 0.0)
    y, x = np.mgrid[: image.shape[0], : image.shape[1]]
    return np.array([(x * bright).sum(), (y * bright).sum()]) / bright.sum()


@each_sensor
def test_degrade_leaves_things_where_they_are(coarse: float) -> None:
    crop = np.full((128, 128, 3), 20, dtype=np.uint8)
    cv2.rectangle(crop, (50, 70), (73, 89), (230, 230, 230), -1)
    home = centroid(crop)
    rng = np.random.default_rng(1)
    off = [centroid(degrade(rng, crop, 30, coarse)) - home for _ in range(400)]
    assert np.hypot(*np.transpose(off)).max() < 0.6 / coarse, "of a pixel of the sensor"


@pytest.mark.parametrize("coarse", [0.05, 0.3, 0.77])
def test_a_coarse_sensor_keeps_means_and_no_detail(coarse: float) -> None:
    """Each of its pixels is the mean of what it covers; a grating finer than they are is gone."""
    columns = np.arange(120)
    fine = np.where(columns % 2, 200, 100)
    slow = 150 + 50 * np.sin(2 * np.pi * columns / 120)
    for line, kept in ((fine, 0.5), (slow, 0.95)):
        crop = np.broadcast_to(line[None, :, None], (120, 120, 3)).astype(np.uint8)
        made = coarsened(crop, coarse)
        assert made.shape == crop.shape
        assert made.mean() == pytest.approx(crop.mean(), abs=2)
        if line is fine:
            assert made.std() < kept * crop.std()
        elif coarse > 0.1:
            assert made.std() > kept * crop.std()
    np.testing.assert_array_equal(coarsened(crop, 1.0), crop)


@pytest.mark.parametrize("length", range(3, 12, 2))
def test_motion_blur_is_centred(length: int) -> None:
    """The kernel's weight lies around the pixel that a filter puts it on, and sums to 1."""
    for angle in np.linspace(0, math.pi, 37):
        kernel = _motion_kernel(length, float(angle))
        assert kernel.sum() == pytest.approx(1)
        anchor = np.array(kernel.shape[::-1]) // 2
        y, x = np.mgrid[: kernel.shape[0], : kernel.shape[1]]
        middle = np.array([(x * kernel).sum(), (y * kernel).sum()])
        assert np.abs(middle - anchor).max() < 0.01, (length, angle)
