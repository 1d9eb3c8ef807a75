"""Readers of published data sets, one module each; all give the same `Sequence`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from vil_tracker_core.data.readers import (
    dtb70,
    got10k,
    lasot,
    otb,
    trackingnet,
    uav123,
    visdrone,
)
from vil_tracker_core.data.readers.common import read_all
from vil_tracker_core.data.sequence import (
    TRUTH_FILE,
    DataError,
    Sequence,
    read_folder,
    sequence_folders,
)


@dataclass(frozen=True)
class Layout:
    """How a data set of videos lies on the disk.

    Attributes:
        title: the data set's name.
        expects: what its root folder holds, for help and messages.
        read: (root, split, broken) -> its sequences; for ``broken`` see `read_benchmark`.
        splits: the splits there are, the one that is read by default first; () where there is
            none, and the split is then "".
        origin: the coordinate of the first pixel in the published truth and result files. Boxes
            of a `Sequence` always begin at 0: add this to write a file for the data set's toolkit.
    """

    title: str
    expects: str
    read: Callable[[Path, str, dict[str, str] | None], list[Sequence]]
    splits: tuple[str, ...] = ()
    origin: int = 0


LAYOUTS: dict[str, Layout] = {
    "got10k": Layout("GOT-10k", got10k.EXPECTS, got10k.read, got10k.SPLITS),
    "lasot": Layout("LaSOT", lasot.EXPECTS, lasot.read, lasot.SPLITS),
    "trackingnet": Layout("TrackingNet", trackingnet.EXPECTS, trackingnet.read, trackingnet.SPLITS),
    "uav123": Layout("UAV123", uav123.EXPECTS, lambda root, _, broken: uav123.read(root, broken)),
    "dtb70": Layout("DTB70", dtb70.EXPECTS, lambda root, _, broken: dtb70.read(root, broken)),
    "visdrone": Layout(
        "VisDrone-SOT", visdrone.EXPECTS, lambda root, _, broken: visdrone.read(root, broken)
    ),
    "otb": Layout(
        "OTB-100", otb.EXPECTS, lambda root, _, broken: otb.read(root, broken), origin=otb.ORIGIN
    ),
    "folder": Layout(
        "generic folder",
        f"NAME/img/*.jpg and NAME/{TRUTH_FILE}",
        lambda root, _, broken: read_all(sequence_folders(root), read_folder, "folders", broken),
    ),
}


def read_benchmark(
    layout: str, root: Path, split: str | None = None, broken: dict[str, str] | None = None
) -> list[Sequence]:
    """The sequences of a data set.

    Args:
        layout: a key of `LAYOUTS`.
        root: the data set's folder, as `Layout.expects` describes it.
        split: which of `Layout.splits`; the first of them by default.
        broken: gains name -> why of each sequence that cannot be read by itself (its truth is a
            line short or empty, its frames are missing) and is left out. With None such a
            sequence ends the reading with a DataError.

    Raises:
        DataError: an unknown layout or split, or data that is not as its layout says.
    """
    if layout not in LAYOUTS:
        raise DataError(f"layout {layout!r} is not known: choose one of {', '.join(LAYOUTS)}")
    known = LAYOUTS[layout].splits
    if split is not None and split not in known:
        choice = f"choose one of {', '.join(known)}" if known else "it has none: leave it out"
        raise DataError(f"{LAYOUTS[layout].title} has no split {split!r}: {choice}")
    if not Path(root).is_dir():
        raise DataError(f"{root} is not a folder: {LAYOUTS[layout].title} was expected there")
    return LAYOUTS[layout].read(Path(root), split or (known[0] if known else ""), broken)
