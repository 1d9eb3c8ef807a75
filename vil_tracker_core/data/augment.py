"""Changes of a crop's look that leave its geometry alone."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np

from vil_tracker_core.geometry import Image

Rng = np.random.Generator


@dataclass(frozen=True)
class Look:
    """Light and colour of a camera: gains of the channels, contrast, gamma, and whether grey."""

    gains: tuple[float, float, float]
    contrast: float
    gamma: float
    grey: bool

    @classmethod
    def random(cls, rng: Rng) -> Look:
        brightness = math.exp(rng.normal(0, 0.18))
        gains = brightness * np.exp(rng.normal(0, 0.06, size=3))
        return cls(
            (float(gains[0]), float(gains[1]), float(gains[2])),
            contrast=math.exp(rng.normal(0, 0.15)),
            gamma=math.exp(rng.normal(0, 0.15)),
            grey=bool(rng.random() < 0.1),
        )

    def near(self, rng: Rng) -> Look:
        """Almost the same look: the next frame of the same camera."""
        flicker = math.exp(rng.normal(0, 0.04))
        b, g, r = (gain * flicker for gain in self.gains)
        return Look((b, g, r), self.contrast, self.gamma, self.grey)

    def apply(self, crop: Image) -> Image:
        levels = np.arange(256, dtype=np.float64)
        curve = 255 * (levels / 255) ** self.gamma
        curve = (curve - 128) * self.contrast + 128
        table = np.clip(curve[:, None] * np.array(self.gains), 0, 255).astype(np.uint8)
        out = cv2.LUT(crop, table[:, None, :].transpose(1, 0, 2))
        if self.grey:
            out = cv2.cvtColor(cv2.cvtColor(out, cv2.COLOR_BGR2GRAY), cv2.COLOR_GRAY2BGR)
        return np.asarray(out, dtype=np.uint8)


def _motion_kernel(length: int, angle: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """(length, length) weights of a line through the middle; ``length`` is odd."""
    kernel = np.zeros((length, length), dtype=np.float32)
    middle = (length - 1) / 2
    dx, dy = math.cos(angle) * middle, math.sin(angle) * middle
    start = (round(middle - dx), round(middle - dy))
    cv2.line(kernel, start, (round(middle + dx), round(middle + dy)), 1.0)
    kernel = kernel + kernel[::-1, ::-1]  # a line of whole pixels leans to one side
    return np.asarray(kernel / kernel.sum(), dtype=np.float32)


def degrade(rng: Rng, crop: Image, longest: float, coarse: float) -> Image:
    """Some of: defocus, motion blur, noise, JPEG; often nothing at all. All but the blur happens
    to the pixels of the sensor, however far they are enlarged.

    Args:
        rng: draws which, and how much.
        crop: a square.
        longest: of a motion blur, px of the crop.
        coarse: side of the crop in pixels of the sensor over its side in pixels, at most 1.
    """
    out = crop
    blur = rng.random()
    if blur < 0.12:
        out = cv2.GaussianBlur(out, (0, 0), rng.uniform(0.6, 2.0)).astype(np.uint8)
    elif blur < 0.28:
        reach = math.exp(rng.uniform(0, math.log(longest / 2)))
        kernel = _motion_kernel(2 * round(reach) + 1, rng.uniform(0, math.pi))
        out = cv2.filter2D(out, -1, kernel).astype(np.uint8)
    out = _sampled(out, coarse)
    if rng.random() < 0.2:
        deviation = np.float32(rng.uniform(2, 10))
        noise = deviation * rng.standard_normal(out.shape, dtype=np.float32)
        out = np.clip(out + noise, 0, 255).astype(np.uint8)
    if rng.random() < 0.15:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 70))]
        coded = cv2.imencode(".jpg", out, quality)[1]
        out = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), dtype=np.uint8)
    return _enlarged(out, len(crop))


def coarsened(crop: Image, coarse: float) -> Image:
    """What `degrade` does to every crop: that of a coarser sensor."""
    return _enlarged(_sampled(crop, coarse), len(crop))


def _sampled(crop: Image, coarse: float) -> Image:
    side = round(coarse * len(crop))  # given as a size: a factor's rounding would shift things
    return crop if side == len(crop) else _to_side(crop, side, cv2.INTER_AREA)


def _enlarged(crop: Image, side: int) -> Image:
    return crop if side == len(crop) else _to_side(crop, side, cv2.INTER_LINEAR)


def _to_side(crop: Image, side: int, interpolation: int) -> Image:
    return cv2.resize(crop, (side, side), interpolation=interpolation).astype(np.uint8)
