"""vil_tracker_core.images on messages of rclpy: every encoding against pixels written by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from vil_tracker_core.images import ImageError, compressed_to_bgr, image_to_bgr

RNG = np.random.default_rng(0)
BGR = RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)


def message(encoding: str, pixels: np.ndarray, padding: int = 0, big: bool = False) -> Image:
    """An Image of (H, W, ...) pixels, each row followed by ``padding`` stray bytes."""
    height, width = pixels.shape[:2]
    rows = pixels.reshape(height, -1)
    if rows.dtype == np.uint16:
        rows = rows.astype(">u2" if big else "<u2").view(np.uint8)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=big,
        step=rows.shape[1],
        data=rows.tobytes(),
    )


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize(
    ("encoding", "pixels"),
    [
        ("bgr8", BGR),
        ("rgb8", BGR[..., ::-1]),
        ("bgra8", np.dstack([BGR, RNG.integers(0, 255, (6, 8), dtype=np.uint8)])),
        ("rgba8", np.dstack([BGR[..., ::-1], RNG.integers(0, 255, (6, 8), dtype=np.uint8)])),
    ],
)
def test_colour(encoding: str, pixels: np.ndarray, padding: int) -> None:
    np.testing.assert_array_equal(image_to_bgr(message(encoding, pixels, padding)), BGR)


@pytest.mark.parametrize("padding", [0, 3])
def test_mono8(padding: int) -> None:
    grey = BGR[..., 0]
    expected = np.repeat(grey[..., None], 3, axis=2)
    np.testing.assert_array_equal(image_to_bgr(message("mono8", grey, padding)), expected)


@pytest.mark.parametrize("big", [False, True])
def test_mono16_keeps_the_high_byte_in_either_byte_order(big: bool) -> None:
    deep = RNG.integers(0, 65535, (6, 8), dtype=np.uint16)
    expected = np.repeat((deep >> 8).astype(np.uint8)[..., None], 3, axis=2)
    found = image_to_bgr(message("mono16", deep, padding=4, big=big))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(("encoding", "luma_at"), [("yuv422", 1), ("yuv422_yuy2", 0)])
def test_yuv422_without_colour_is_grey(encoding: str, luma_at: int) -> None:
    luma = RNG.integers(30, 220, (6, 8), dtype=np.uint8)
    pixels = np.full((6, 8, 2), 128, dtype=np.uint8)
    pixels[..., luma_at] = luma
    found = image_to_bgr(message(encoding, pixels)).astype(int)
    # studio swing: 16..235 becomes 0..255
    expected = np.clip((luma.astype(float) - 16) * 255 / 219, 0, 255)
    assert np.abs(found - expected[..., None]).max() <= 2


def test_yuv422_has_blue_where_u_is_high() -> None:
    pixels = np.full((2, 4, 2), 128, dtype=np.uint8)
    pixels[:, 0::2, 0] = 220  # U of UYVY stands before the first luma of a pair
    b, g, r = image_to_bgr(message("yuv422", pixels))[0, 0].astype(int)
    assert b > r + 60
    assert b > g + 60


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encoding": "32FC1"}, "'32FC1' is not supported"),
        ({"step": 5}, "step is 5"),
        ({"data": b"12"}, "data has 2 bytes"),
        ({"height": 0}, "8x0"),
        ({"height": 100_000, "width": 100_000}, "100000x100000"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_reason(changed: dict, words: str) -> None:
    broken = message("bgr8", BGR)
    for name, value in changed.items():
        setattr(broken, name, value)
    with pytest.raises(ImageError, match=words):
        image_to_bgr(broken)


def test_compressed() -> None:
    coded = cv2.imencode(".png", BGR)[1].tobytes()
    np.testing.assert_array_equal(compressed_to_bgr(CompressedImage(format="png", data=coded)), BGR)
    with pytest.raises(ImageError, match="not a whole image"):
        compressed_to_bgr(CompressedImage(format="png", data=coded[:20]))
    with pytest.raises(ImageError, match="0 bytes"):
        compressed_to_bgr(CompressedImage(format="jpeg", data=b""))
