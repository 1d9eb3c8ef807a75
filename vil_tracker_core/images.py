"""Camera messages as BGR arrays, without copying more than needed and without ROS.

The messages are read by their fields alone, so those of rclpy and those of the ``rosbags`` library
give the same pixels.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import cv2
import numpy as np

from vil_tracker_core.geometry import Image


class ImageError(ValueError):
    """An image message that cannot be read; the message says why."""


class RawMessage(Protocol):
    """The fields of sensor_msgs/Image that say what its pixels are."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: Any


class CompressedMessage(Protocol):
    """The fields of sensor_msgs/CompressedImage that say what its pixels are."""

    format: str
    data: Any


class _Encoding(NamedTuple):
    """How a pixel lies in memory, and OpenCV's code that turns it into BGR (None: it is BGR)."""

    channels: int
    dtype: type[np.unsignedinteger]
    to_bgr: int | None


ENCODINGS = {
    "bgr8": _Encoding(3, np.uint8, None),
    "rgb8": _Encoding(3, np.uint8, cv2.COLOR_RGB2BGR),
    "bgra8": _Encoding(4, np.uint8, cv2.COLOR_BGRA2BGR),
    "rgba8": _Encoding(4, np.uint8, cv2.COLOR_RGBA2BGR),
    "mono8": _Encoding(1, np.uint8, cv2.COLOR_GRAY2BGR),
    "mono16": _Encoding(1, np.uint16, cv2.COLOR_GRAY2BGR),
    "yuv422": _Encoding(2, np.uint8, cv2.COLOR_YUV2BGR_UYVY),
    "yuv422_yuy2": _Encoding(2, np.uint8, cv2.COLOR_YUV2BGR_YUY2),
}

MAX_PIXELS = 64_000_000
"""Larger images are refused: they would need more memory than a tracker should take."""


def image_to_bgr(message: RawMessage) -> Image:
    """(H, W, 3) uint8 BGR of a sensor_msgs/Image; raises ImageError naming what is wrong.

    mono16 is reduced to its high byte. Rows may be padded: step counts bytes, width pixels.
    """
    encoding = ENCODINGS.get(message.encoding)
    if encoding is None:
        known = ", ".join(ENCODINGS)
        raise ImageError(f"encoding {message.encoding!r} is not supported (supported: {known})")
    height, width, step = message.height, message.width, message.step
    if height == 0 or width == 0 or height * width > MAX_PIXELS:
        raise ImageError(f"an image of {width}x{height} pixels cannot be used")
    if message.encoding.startswith("yuv422") and width % 2:
        raise ImageError(f"{message.encoding} holds pairs of pixels, but a row has {width}")
    size = np.dtype(encoding.dtype).itemsize
    row = width * encoding.channels * size
    if step < row or len(message.data) < step * height:
        raise ImageError(
            f"{width}x{height} {message.encoding} needs {row} bytes a row, but step is {step} and "
            f"data has {len(message.data)} bytes"
        )
    flat = np.frombuffer(message.data, dtype=np.uint8, count=step * height)
    pixels = flat.reshape(height, step)[:, :row]
    if size == 2:
        high = 0 if message.is_bigendian else 1
        pixels = pixels[:, high::2]
    pixels = np.ascontiguousarray(pixels).reshape(height, width, encoding.channels)
    if encoding.to_bgr is None:
        return pixels
    return np.asarray(cv2.cvtColor(pixels, encoding.to_bgr), dtype=np.uint8)


def compressed_to_bgr(message: CompressedMessage) -> Image:
    """(H, W, 3) uint8 BGR of a sensor_msgs/CompressedImage; raises ImageError."""
    data = np.frombuffer(message.data, dtype=np.uint8)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR) if data.size else None
    if image is None:
        raise ImageError(f"{data.size} bytes of format {message.format!r} are not a whole image")
    return np.asarray(image, dtype=np.uint8)
