"""What is to be tracked: the sequences of a benchmark or a bag, and where tracking starts."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

import numpy as np

from vil_tracker_core.data.readers import LAYOUTS, read_benchmark
from vil_tracker_core.data.sequence import DataError, Sequence, read_folder, read_text
from vil_tracker_core.evaluation.bag_sequence import read_bag
from vil_tracker_core.evaluation.metrics import visible
from vil_tracker_core.geometry import Box

LAYOUT_NAMES = (*LAYOUTS, "bag")


@dataclass(frozen=True)
class Case:
    """One sequence to run trackers on.

    Attributes:
        sequence: frames and truth.
        box: where to start on frame 0; by default the truth of the first visible frame.
        first_stamp: ns since 1970 of the first frame, where it is known.
        attributes: what makes it hard, in the benchmark's words.
        note: what a reader of its results should know.
    """

    sequence: Sequence
    box: Box | None = None
    first_stamp: int | None = None
    attributes: tuple[str, ...] = ()
    note: str = ""

    @property
    def name(self) -> str:
        return self.sequence.name

    @property
    def start(self) -> int:
        """Index of the frame on which the tracker is started; raises DataError without a box."""
        if self.box is not None:
            return 0
        seen = np.flatnonzero(visible(self.sequence.boxes))
        if not len(seen):
            raise DataError(f"sequence {self.name} has no box to start on: its truth is empty")
        return int(seen[0])

    @property
    def start_box(self) -> Box:
        """The box on which the tracker is started."""
        return self.box or Box(*(float(value) for value in self.sequence.boxes[self.start]))

    @property
    def scored(self) -> bool:
        """There is truth to compare with after the start."""
        return bool(visible(self.sequence.boxes)[self.start + 1 :].any())

    def fingerprint(self) -> str:
        """SHA-256 (hex) of start, truth, stamps and the pixels of up to 8 frames spread evenly.

        Reading every frame would take about as long as tracking them. A frame that cannot be read
        counts as what is said about it.
        """
        digest = hashlib.sha256(repr((self.name, self.start, self.start_box)).encode())
        digest.update(self.sequence.boxes.tobytes())
        digest.update(self.sequence.stamps.tobytes())
        count = len(self.sequence)
        for index in np.unique(np.linspace(0, count - 1, 8).round().astype(int)).tolist():
            try:
                frame = self.sequence.load(index)
                digest.update(repr(frame.shape).encode() + frame.tobytes())
            except (ValueError, OSError) as error:
                digest.update(str(error).encode())
        return digest.hexdigest()


@dataclass
class Cases:
    """The cases of a source, and the sequences that could not be read.

    Attributes:
        title: for the report's heading.
        cases: in the source's order.
        broken: name -> why, of sequences that are left out.
        origin: coordinate of the first pixel in the benchmark's own text files.
    """

    title: str
    cases: list[Case]
    broken: dict[str, str] = field(default_factory=dict)
    origin: int = 0


class Source(Protocol):
    """Where cases come from; small, so that it can be sent to another process."""

    def read(self) -> Cases:
        """Raises DataError where nothing can be read at all."""
        ...


@dataclass(frozen=True)
class BenchmarkSource:
    """The sequences of a data set's folder.

    Attributes:
        layout: see `LAYOUT_NAMES`.
        root: the folder.
        split: as the layout names it; the one for testing by default.
        only: names of the sequences to take; all by default.
    """

    layout: str
    root: Path
    split: str | None = None
    only: tuple[str, ...] = ()

    def read(self) -> Cases:
        # readers show their progress on the standard output, where --json prints its result
        with contextlib.redirect_stdout(sys.stderr):
            cases = self._read()
        if not self.only:
            return cases
        present = {case.name for case in cases.cases} | cases.broken.keys()
        for name in self.only:
            if name not in present:
                raise DataError(
                    f"{self.root} has no sequence {name}: it has {', '.join(sorted(present))}"
                )
        return replace(
            cases,
            cases=[case for case in cases.cases if case.name in self.only],
            broken={name: why for name, why in cases.broken.items() if name in self.only},
        )

    def _read(self) -> Cases:
        if self.layout == "bag":
            cases = _each("rosbags", _bags(self.root), _bag_case)
        elif self.layout == "folder":
            if not self.root.is_dir():
                raise DataError(f"{self.root} is not a folder: give one that holds sequences")
            cases = _each("folders", _folders(self.root), lambda path: Case(read_folder(path)))
        elif self.layout in LAYOUTS:
            layout = LAYOUTS[self.layout]
            broken: dict[str, str] = {}
            sequences = read_benchmark(self.layout, self.root, self.split, broken)
            cases = Cases(layout.title, [Case(each) for each in sequences], broken, layout.origin)
        else:
            raise DataError(f"layout {self.layout!r} is not one of {', '.join(LAYOUT_NAMES)}")
        if not cases.cases:
            why = "".join(f": {reason}" for reason in list(cases.broken.values())[:1])
            raise DataError(f"{self.root} holds no sequence of layout {self.layout} to run{why}")
        _check_names(cases)
        return _with_attributes(cases, self.layout, self.root)


@dataclass(frozen=True)
class BagSource:
    """One bag; see `bag_sequence.read_bag`. ``box`` starts the tracker where truth does not."""

    path: Path
    image_topic: str | None = None
    truth: str | None = None
    box: Box | None = None

    def read(self) -> Cases:
        case = _bag_case(self.path, self.image_topic, self.truth, self.box)
        return Cases(f"bag {self.path.name}", [case])


def _bag_case(
    path: Path, image_topic: str | None = None, truth: str | None = None, box: Box | None = None
) -> Case:
    bag = read_bag(path, image_topic=image_topic, truth=truth)
    if box is None and not bag.sequence.visible.any():
        raise DataError(
            f"{path} has no truth to start on: name a Detection2D topic or a file with --truth, or "
            "give the target's box in the first frame with --box x,y,w,h (`vil-tracker bag eval`)"
        )
    note = ""
    if bag.unmatched:
        note = f"{bag.unmatched} boxes of {bag.truth} belong to no frame"
    return Case(bag.sequence, box, bag.first_stamp, note=note)


def _bags(root: Path) -> list[Path]:
    """The bags in a folder: folders with a bag in them, and bare files; or the folder itself."""
    root = Path(root)
    if not root.is_dir() or (root / "metadata.yaml").is_file():
        return [root]
    files = {path for path in root.iterdir() if path.suffix in (".mcap", ".db3")}
    folders = {
        path
        for path in root.iterdir()
        if path.is_dir()
        and any(p.name == "metadata.yaml" or p.suffix in (".mcap", ".db3") for p in path.iterdir())
    }
    return sorted(files | folders)


def _folders(root: Path) -> list[Path]:
    if (root / "img").is_dir():
        return [root]
    return sorted(path for path in root.iterdir() if (path / "img").is_dir())


def _each(title: str, paths: Iterable[Path], read: Callable[[Path], Case]) -> Cases:
    """Reads every path by itself, so that one fault does not end the run."""
    cases = Cases(title, [])
    for path in paths:
        try:
            cases.cases.append(read(path))
        except (ValueError, OSError) as error:
            cases.broken[path.name] = str(error)
    return cases


def _check_names(cases: Cases) -> None:
    names = [case.name for case in cases.cases]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{names.count(name)} sequences are named {name!r}: rename them")
        if "/" in name or name in ("", ".", ".."):
            raise DataError(f"sequence {name!r} cannot be the name of a file: rename it")


# --- Attributes -----------------------------------------------------------------------------------

UAV123_ATTRIBUTES = (
    "scale variation",
    "aspect ratio change",
    "low resolution",
    "fast motion",
    "full occlusion",
    "partial occlusion",
    "out of view",
    "background clutter",
    "illumination variation",
    "viewpoint change",
    "camera motion",
    "similar object",
)
"""In the order of the flags in ``anno/UAV123/att/NAME.txt``."""
ATTRIBUTES_FILE = "attributes.json"
"""For any other layout, in its root: sequence -> list of words."""


def _with_attributes(cases: Cases, layout: str, root: Path) -> Cases:
    """The same cases with their attributes, where the data set has them."""
    known: dict[str, list[str]] = {}
    if layout == "uav123":
        for case in cases.cases:
            path = root / "anno/UAV123/att" / f"{case.name}.txt"
            if path.is_file():
                known[case.name] = _flags(path)
    elif (root / ATTRIBUTES_FILE).is_file():
        try:
            known = {
                str(name): [str(word) for word in words]
                for name, words in json.loads(read_text(root / ATTRIBUTES_FILE)).items()
            }
        except (AttributeError, TypeError, json.JSONDecodeError) as error:
            raise DataError(
                f"{root / ATTRIBUTES_FILE} must map each sequence to a list of words: {error}"
            ) from None
    made = [
        Case(c.sequence, c.box, c.first_stamp, tuple(known.get(c.name, ())), c.note)
        for c in cases.cases
    ]
    return Cases(cases.title, made, cases.broken, cases.origin)


def _flags(path: Path) -> list[str]:
    flags = read_text(path).replace(",", " ").split()
    if len(flags) != len(UAV123_ATTRIBUTES) or not set(flags) <= {"0", "1"}:
        raise DataError(f"{path} must hold {len(UAV123_ATTRIBUTES)} flags of 0 or 1")
    return [word for word, flag in zip(UAV123_ATTRIBUTES, flags, strict=True) if flag == "1"]
