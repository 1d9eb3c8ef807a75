"""Camera messages of either kind as BGR arrays; the core knows how (`vil_tracker_core.images`)."""

from __future__ import annotations

from sensor_msgs.msg import CompressedImage, Image

from vil_tracker_core.geometry import Image as BgrImage
from vil_tracker_core.images import (
    ENCODINGS,
    MAX_PIXELS,
    ImageError,
    compressed_to_bgr,
    image_to_bgr,
)

__all__ = [
    "ENCODINGS",
    "MAX_PIXELS",
    "BgrImage",
    "ImageError",
    "compressed_to_bgr",
    "image_to_bgr",
    "to_bgr",
]


def to_bgr(message: Image | CompressedImage) -> BgrImage:
    """(H, W, 3) uint8 BGR of either kind of message; raises ImageError."""
    if isinstance(message, CompressedImage):
        return compressed_to_bgr(message)
    return image_to_bgr(message)
