"""What was skipped is known, whichever process met it."""

from __future__ import annotations

from pathlib import Path

from vil_tracker_core.data.skipped import SkippedImages


def test_each_image_counts_once() -> None:
    skipped = SkippedImages()
    for name in ("b.jpg", "a.jpg", "b.jpg"):
        skipped.add(f"{name} is missing")
    assert skipped.reasons() == ["b.jpg is missing", "a.jpg is missing"]


def test_others_and_earlier_runs_count_too(tmp_path: Path) -> None:
    path = tmp_path / "skipped_images.txt"
    assert SkippedImages(path).reasons() == []
    SkippedImages(path).add("a.jpg is missing")
    mine = SkippedImages(path)
    mine.add("b.jpg is cut short\nafter 3 bytes")
    mine.add("a.jpg is missing")
    assert mine.reasons() == ["a.jpg is missing", "b.jpg is cut short after 3 bytes"]
    assert SkippedImages(path).reasons() == mine.reasons()
