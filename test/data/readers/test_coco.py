"""COCO's layout: photographs with boxes, crowds and specks left out."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.readers import coco


def item(image: int, box: list[float], crowd: int = 0) -> dict[str, object]:
    return {"id": 1, "image_id": image, "bbox": box, "iscrowd": crowd, "category_id": 3}


@pytest.fixture
def root(tmp_path: Path, write_frames: Callable[..., None]) -> Path:
    write_frames(tmp_path / "val2017", "{:012d}.jpg", range(1, 4))
    images = [{"id": 100 + i, "file_name": f"{i:012d}.jpg", "width": 6} for i in (3, 2, 1)]
    annotations = [
        item(102, [1.5, 2, 30, 40]),
        item(101, [5, 6, 50, 60]),
        item(102, [7, 8, 20, 12]),
        item(102, [7, 8, 20, 11.9]),
        item(103, [0, 0, 90, 90], crowd=1),
    ]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2017.json").write_text(
        json.dumps({"info": {}, "images": images, "annotations": annotations, "categories": []})
    )
    return tmp_path


def check(items: list[tuple[Path, np.ndarray]], folder: Path) -> None:
    assert [path for path, _ in items] == [folder / f"{i:012d}.jpg" for i in (1, 2)]
    np.testing.assert_array_equal(items[0][1], [[5, 6, 50, 60]])
    np.testing.assert_array_equal(items[1][1], [[1.5, 2, 30, 40], [7, 8, 20, 12]])


def test_boxes_of_each_photograph(root: Path) -> None:
    check(coco.read(root, "val2017"), root / "val2017")


def test_images_may_lie_below_images(root: Path) -> None:
    (root / "images").mkdir()
    (root / "val2017").rename(root / "images" / "val2017")
    check(coco.read(root, "val2017"), root / "images" / "val2017")


def test_missing_parts_are_named(root: Path, refused: Callable[..., None]) -> None:
    listed = root / "annotations" / "instances_val2017.json"
    refused(lambda: coco.read(root, "train2017"), "instances_train2017.json", "missing")
    (root / "val2017" / f"{1:012d}.jpg").unlink()
    refused(lambda: coco.read(root, "val2017"), f"{1:012d}.jpg", "missing", listed)
    (root / "val2017").rename(root / "elsewhere")
    refused(lambda: coco.read(root, "val2017"), root / "val2017", "not a folder")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not valid JSON"),
        ("[]", "images and annotations"),
        ('{"images": []}', "images and annotations"),
        ('{"images": [], "annotations": [{"image_id": 1, "bbox": [1, 2, 30, 40]}]}', "entry"),
        ('{"images": [], "annotations": [{"image_id": 1}]}', "bbox"),
        ('{"images": [], "annotations": []}', "no box"),
    ],
)
def test_malformed_annotations_are_named(
    root: Path, refused: Callable[..., None], text: str, said: str
) -> None:
    path = root / "annotations" / "instances_val2017.json"
    path.write_text(text)
    refused(lambda: coco.read(root, "val2017"), path, said)
