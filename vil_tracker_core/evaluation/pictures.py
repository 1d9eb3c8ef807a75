"""Boxes and ellipses drawn into frames, and pictures as text for a page without files beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np

from vil_tracker_core.geometry import Box, FloatArray, Image
from vil_tracker_core.regions import ellipse_axes

Colour = tuple[int, int, int]
TRUTH_COLOUR: Colour = (255, 255, 255)


def draw_box(canvas: Image, box: Box, colour: Colour, width: int) -> None:
    """Draws the box's outline into ``canvas``; colours are BGR."""
    corner = (round(box.x), round(box.y))
    opposite = (round(box.x + box.w), round(box.y + box.h))
    cv2.rectangle(canvas, corner, opposite, colour, width, cv2.LINE_AA)


def draw_ellipse(canvas: Image, box: Box, covariance: FloatArray, colour: Colour) -> None:
    """Draws the region that holds the box's centre with 95 % probability.

    Args:
        canvas: (H, W, 3), drawn into.
        box: the estimate.
        covariance: (4, 4) of (cx, cy, w, h) in canvas pixels squared.
        colour: BGR.
    """
    major, minor, angle = ellipse_axes(covariance[:2, :2], 0.95)
    centre = (round(box.cx), round(box.cy))
    axes = (max(round(major), 1), max(round(minor), 1))
    cv2.ellipse(canvas, centre, axes, np.degrees(angle), 0, 360, colour, 1, cv2.LINE_AA)


def window_around(
    boxes: Iterable[Box], frame_size: tuple[int, int], aspect: float
) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1): the part of the frame, of ``aspect`` (width over height) where it fits,
    that shows all boxes with some of what lies around them.

    Args:
        boxes: in frame pixels; the whole frame where there is none.
        frame_size: (width, height).
        aspect: width over height.
    """
    width, height = frame_size
    inside = [box for box in boxes if box.x < width and box.y < height and box.x + box.w > 0]
    if not inside:
        return 0, 0, width, height
    left, top = min(box.x for box in inside), min(box.y for box in inside)
    right = max(box.x + box.w for box in inside)
    bottom = max(box.y + box.h for box in inside)
    least = 2.5 * max(math.sqrt(box.w * box.h) for box in inside)
    tall = max(1.5 * (bottom - top), 1.5 * (right - left) / aspect, least, 48.0)
    wide = tall * aspect
    scale = min(1.0, width / wide, height / tall)
    wide, tall = max(round(wide * scale), 2), max(round(tall * scale), 2)
    x0 = round(min(max((left + right - wide) / 2, 0), width - wide))
    y0 = round(min(max((top + bottom - tall) / 2, 0), height - tall))
    return x0, y0, x0 + wide, y0 + tall


def jpeg(picture: Image, quality: int = 80) -> str:
    """A data URI of a BGR picture."""
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return f"data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}"


def embedded(path: Path) -> str:
    """A data URI of a picture's file."""
    kind = path.suffix.lstrip(".")
    return f"data:image/{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"
