"""Camera messages: checked and measured when they arrive, decoded when they are worked on.

The distribution's cv_bridge decodes where it imports, the core's conversion elsewhere; both give
the same pixels.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
from sensor_msgs.msg import CompressedImage, Image

from vil_tracker_core.geometry import Image as Pixels
from vil_tracker_core.images import (
    ENCODINGS,
    MAX_PIXELS,
    ImageError,
    compressed_to_bgr,
    image_to_bgr,
)

try:
    from cv_bridge import CvBridge, CvBridgeError

    BRIDGE: Any = CvBridge()
except Exception:  # not installed; or built for another NumPy, which ends in various errors
    BRIDGE, CvBridgeError = None, ImageError

MAX_BYTES = 4 * MAX_PIXELS
"""Messages with more data are refused: held for `init_history`, they would fill the memory."""
LONGEST_ENCODING = 32
"""Letters of an unknown encoding that are repeated in a report."""

PNG_MARK, PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND"
JPEG_MARK, JPEG_END = b"\xff\xd8", b"\xff\xd9"
MAX_SEGMENTS = 1000
"""Segments before a JPEG's size; real ones have some dozens."""


def size_of(message: Image | CompressedImage) -> tuple[int, int]:
    """(width, height) of a message's image; raises ImageError where it cannot be used.

    Takes microseconds: raw images are checked whole, of compressed ones only the head is read.
    """
    if len(message.data) > MAX_BYTES:
        raise ImageError(f"an image of {len(message.data)} bytes is too large")
    if isinstance(message, CompressedImage):
        width, height = _coded_size(memoryview(message.data))
    else:
        width, height = message.width, message.height
        _check_layout(message)
    if not 0 < width * height <= MAX_PIXELS:
        raise ImageError(f"an image of {width}x{height} pixels cannot be used")
    return width, height


def kind_of(message: Image | CompressedImage) -> str:
    """A message's encoding or format, cut to a printable length."""
    kind = message.format if isinstance(message, CompressedImage) else message.encoding
    return str(kind)[:LONGEST_ENCODING]


def to_bgr(message: Image | CompressedImage) -> Pixels:
    """(H, W, 3) uint8 BGR of a message that `size_of` takes; raises ImageError."""
    if isinstance(message, CompressedImage):
        return compressed_to_bgr(message)
    # cv_bridge shears images whose rows end in half a pixel, and rounds 16 bits where others cut
    beyond = message.encoding == "mono16" or message.step % _pixel_bytes(message)
    if BRIDGE is None or beyond:
        return image_to_bgr(message)
    try:
        return np.asarray(BRIDGE.imgmsg_to_cv2(message, "bgr8"), dtype=np.uint8)
    except CvBridgeError:  # an older one does not know every encoding
        return image_to_bgr(message)


def _pixel_bytes(message: Image) -> int:
    encoding = ENCODINGS[message.encoding]
    return encoding.channels * np.dtype(encoding.dtype).itemsize


def _check_layout(message: Image) -> None:
    if message.encoding not in ENCODINGS:
        raise ImageError(
            f"encoding {kind_of(message)!r} is not supported (supported: {', '.join(ENCODINGS)})"
        )
    row = message.width * _pixel_bytes(message)
    if message.step < row or len(message.data) < message.step * message.height:
        raise ImageError(
            f"{message.width}x{message.height} {message.encoding} needs {row} bytes a row, but "
            f"step is {message.step} and data has {len(message.data)} bytes"
        )
    if message.encoding.startswith("yuv422") and message.width % 2:
        raise ImageError(
            f"a {message.encoding} image holds pairs of pixels, but it is {message.width} wide"
        )


def _coded_size(data: memoryview) -> tuple[int, int]:
    """(width, height) from the head of a whole PNG or JPEG, without decoding it: a few bytes may
    claim any size."""
    try:
        if data[:8] == PNG_MARK:
            width, height = struct.unpack_from(">II", data, 16)
            _check_end(data, PNG_END)
            return width, height
        if data[:2] == JPEG_MARK:
            return _jpeg_size(data)
    except struct.error:
        raise ImageError(f"{len(data)} bytes end within an image's head") from None
    raise ImageError(f"{len(data)} bytes are neither a JPEG nor a PNG")


def _jpeg_size(data: memoryview) -> tuple[int, int]:
    """Walks over a JPEG's segments to the frame header (ITU T.81, B.2.2)."""
    at = len(JPEG_MARK)
    for _ in range(MAX_SEGMENTS):
        mark, code, length = struct.unpack_from(">BBH", data, at)
        if mark != 0xFF:
            break
        if code == 0xFF:  # a fill byte
            at += 1
        elif 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack_from(">HH", data, at + 5)
            _check_end(data[at:], JPEG_END)  # an earlier one is that of a thumbnail
            return width, height
        else:
            at += 2 + length
    raise ImageError("the JPEG's head is damaged")


def _check_end(data: memoryview, end: bytes) -> None:
    """OpenCV takes a truncated image and paints the rest grey, which is no frame to track on."""
    if end not in data.tobytes():
        raise ImageError(f"the image is truncated: its {len(data)} bytes lack the end mark")
