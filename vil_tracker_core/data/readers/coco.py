"""COCO: photographs with boxes, ``annotations/instances_SPLIT.json`` and ``SPLIT/*.jpg``.

The images may also lie in ``images/SPLIT/``. A photograph is no video: `clips.BoxedStills` pans
and zooms over it to make one.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from vil_tracker_core.data.readers.common import image_names
from vil_tracker_core.data.sequence import DataError, read_text
from vil_tracker_core.geometry import FloatArray

SPLITS = ("train2017", "val2017")
EXPECTS = "annotations/instances_train2017.json and train2017/ with the images"


def _annotations(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(images, annotations) of an instances file."""
    if not path.is_file():
        raise DataError(f"{path} is missing: COCO is laid out as {EXPECTS}")
    try:
        held = json.loads(read_text(path))
        return list(held["images"]), list(held["annotations"])
    except json.JSONDecodeError as error:
        raise DataError(f"{path}, line {error.lineno}, is not valid JSON: {error.msg}") from None
    except (KeyError, TypeError):
        raise DataError(
            f"{path} must hold images and annotations, as COCO's instances do"
        ) from None


def read(root: Path, split: str, least_side: float = 12.0) -> list[tuple[Path, FloatArray]]:
    """(image, (N, 4) boxes) of each photograph with an object.

    Crowds, and boxes with a side under ``least_side`` px, are left out.

    Raises:
        DataError: a part is missing or malformed, or an image of the list is not there.
    """
    root = Path(root)
    listed = root / "annotations" / f"instances_{split}.json"
    images, annotations = _annotations(listed)
    folders = [folder for folder in (root / split, root / "images" / split) if folder.is_dir()]
    if not folders:
        raise DataError(f"{root / split} is not a folder: COCO is laid out as {EXPECTS}")
    boxes: dict[int, list[list[float]]] = {}
    try:
        names = {int(image["id"]): str(image["file_name"]) for image in images}
        for item in annotations:
            box = [float(value) for value in item["bbox"]]
            if len(box) == 4 and min(box[2:]) >= least_side and not item.get("iscrowd"):
                boxes.setdefault(int(item["image_id"]), []).append(box)
        wanted = [(names[key], np.array(found)) for key, found in sorted(boxes.items())]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{listed} has an entry without its image or box: {error!r}") from None
    if not wanted:
        raise DataError(f"{listed} holds no box of {least_side:g} px a side")
    missing = {name for name, _ in wanted} - set(image_names(folders[0]))
    if missing:
        raise DataError(
            f"{folders[0] / min(missing)} and {len(missing) - 1} more are missing: "
            f"{listed} lists them"
        )
    return [(folders[0] / name, found) for name, found in wanted]
