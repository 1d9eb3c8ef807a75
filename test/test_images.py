"""vil_tracker_core.images: messages of the rosbags library, which are those of rclpy by field.

test/ros/test_images.py tries every encoding on rclpy's messages.
"""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from vil_tracker_core.images import ENCODINGS, ImageError, compressed_to_bgr, image_to_bgr

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5


def message(kind: str, rows: np.ndarray, **fields: object) -> SimpleNamespace:
    """The fields of sensor_msgs/Image; ``rows`` (H, bytes a row) uint8."""
    size = ENCODINGS[kind].channels * np.dtype(ENCODINGS[kind].dtype).itemsize
    values = {
        "height": len(rows),
        "width": rows.shape[1] // size,
        "encoding": kind,
        "is_bigendian": 0,
        "step": rows.shape[1],
        "data": rows.reshape(-1),
    }
    return SimpleNamespace(**(values | fields))


@pytest.mark.parametrize("big", [0, 1])
def test_mono16_is_its_high_byte(big: int) -> None:
    deep = (GREY.astype(np.uint16) << 8) + 77
    rows = deep.astype(">u2" if big else "<u2").view(np.uint8).reshape(6, 16)
    rows = np.pad(rows, ((0, 0), (0, 3)))  # rows may be padded
    found = image_to_bgr(message("mono16", rows, width=8, is_bigendian=big))
    np.testing.assert_array_equal(found, np.repeat(GREY[..., None], 3, axis=2))


@pytest.mark.parametrize(("encoding", "luma_at"), [("yuv422", 1), ("yuv422_yuy2", 0)])
def test_yuv422_without_colour_is_grey(encoding: str, luma_at: int) -> None:
    pixels = np.full((6, 8, 2), 128, dtype=np.uint8)
    pixels[..., luma_at] = np.clip(GREY, 16, 235)
    found = image_to_bgr(message(encoding, pixels.reshape(6, 16))).astype(int)
    expected = (np.clip(GREY, 16, 235).astype(float) - 16) * 255 / 219  # studio swing
    assert np.abs(found - expected[..., None]).max() <= 2


def test_yuv422_needs_whole_pairs() -> None:
    rows = np.zeros((4, 14), np.uint8)
    with pytest.raises(ImageError, match="yuv422 holds pairs of pixels, but a row has 7"):
        image_to_bgr(message("yuv422", rows))


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"encoding": "bayer_rggb8"}, "'bayer_rggb8' is not supported .*mono16, yuv422"),
        ({"step": 5}, "step is 5"),
        ({"data": np.zeros(3, np.uint8)}, "data has 3 bytes"),
        ({"width": 0}, "an image of 0x6 pixels"),
        ({"height": 10**5, "width": 10**5}, "100000x100000"),
    ],
)
def test_what_cannot_be_read_says_why(fields: dict[str, object], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        image_to_bgr(message("mono8", GREY, **fields))


def test_compressed() -> None:
    frame = np.repeat(GREY[..., None], 3, axis=2)
    data = cv2.imencode(".png", frame)[1].reshape(-1)
    found = compressed_to_bgr(SimpleNamespace(format="png", data=data))
    np.testing.assert_array_equal(found, frame)
    with pytest.raises(ImageError, match="5 bytes of format 'png' are not a whole image"):
        compressed_to_bgr(SimpleNamespace(format="png", data=data[:5]))
