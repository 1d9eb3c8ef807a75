"""evaluation.cases: where sequences come from, what is left out, fingerprints, attributes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation.bags import make_bag
from vil_tracker_core.evaluation.cases import BagSource, BenchmarkSource, Case
from vil_tracker_core.geometry import Box

MakeSequence = Callable[..., Sequence]
WriteSequence = Callable[[Sequence, Path], Path]


def test_folders_and_one_folder(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    for name in ("b", "a"):
        write_sequence(make_sequence(name, count=3), tmp_path)
    (tmp_path / "notes").mkdir()
    found = BenchmarkSource("folder", tmp_path).read()
    assert [case.name for case in found.cases] == ["a", "b"]
    assert [case.name for case in BenchmarkSource("folder", tmp_path / "b").read().cases] == ["b"]


def test_some_sequences_by_name(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    for name in "abc":
        write_sequence(make_sequence(name, count=3), tmp_path)
    (tmp_path / "c" / "groundtruth_rect.txt").write_text("1,2,3\n")
    found = BenchmarkSource("folder", tmp_path, only=("c", "a")).read()
    assert [case.name for case in found.cases] == ["a"]
    assert list(found.broken) == ["c"]
    with pytest.raises(DataError, match="no sequence d: it has a, b, c"):
        BenchmarkSource("folder", tmp_path, only=("a", "d")).read()


def test_a_published_layout_with_attributes(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    made = write_sequence(make_sequence("boat9", count=3), tmp_path / "made")
    video = tmp_path / "uav/data_seq/UAV123/boat9"
    video.mkdir(parents=True)
    for number, image in enumerate(sorted((made / "img").iterdir()), start=1):
        shutil.copy(image, video / f"{number:06d}.jpg")
    truth = tmp_path / "uav/anno/UAV123"
    (truth / "att").mkdir(parents=True)
    shutil.copy(made / "groundtruth_rect.txt", truth / "boat9.txt")
    (truth / "att" / "boat9.txt").write_text("1,0,0,0,0,0,0,0,0,0,1,0\n")
    (case,) = BenchmarkSource("uav123", tmp_path / "uav").read().cases
    assert case.attributes == ("scale variation", "camera motion")
    (truth / "att" / "boat9.txt").write_text("1,0\n")
    with pytest.raises(DataError, match=r"att/boat9.txt must hold 12 flags"):
        BenchmarkSource("uav123", tmp_path / "uav").read()


def test_a_broken_sequence_of_a_published_layout_does_not_end_the_run(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    for name in ("a", "b"):
        write_sequence(make_sequence(name, count=3), tmp_path)
        for number, image in enumerate(sorted((tmp_path / name / "img").iterdir()), start=1):
            image.rename(image.with_name(f"{number:05d}.jpg"))
    truth = tmp_path / "b" / "groundtruth_rect.txt"
    truth.write_text("".join(truth.read_text().splitlines(keepends=True)[:-1]))
    found = BenchmarkSource("dtb70", tmp_path).read()
    assert [case.name for case in found.cases] == ["a"]
    assert list(found.broken) == ["b"]
    assert "2 boxes for 3 frames" in found.broken["b"]
    (tmp_path / "a" / "groundtruth_rect.txt").write_text("")
    with pytest.raises(DataError, match=r"holds no sequence of layout dtb70 to run: .* no boxes"):
        BenchmarkSource("dtb70", tmp_path).read()


def test_attributes_of_any_other_layout(
    make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path
) -> None:
    write_sequence(make_sequence("a", count=3), tmp_path)
    (tmp_path / "attributes.json").write_text(json.dumps({"a": ["fog"], "gone": ["rain"]}))
    (case,) = BenchmarkSource("folder", tmp_path).read().cases
    assert case.attributes == ("fog",)
    (tmp_path / "attributes.json").write_text("[1]")
    with pytest.raises(DataError, match="must map each sequence to a list of words"):
        BenchmarkSource("folder", tmp_path).read()


def test_bags_in_a_folder(make_sequence: MakeSequence, tmp_path: Path) -> None:
    sequence = make_sequence(count=3)
    make_bag(sequence, tmp_path / "good")
    make_bag(sequence, tmp_path / "cut", storage="mcap")
    make_bag(replace(sequence, boxes=np.full((3, 4), np.nan)), tmp_path / "blind")
    whole = tmp_path / "cut" / "cut.mcap"
    whole.write_bytes(whole.read_bytes()[:-200])
    (tmp_path / "stray.db3").write_text("no bag")
    (tmp_path / "notes.txt").write_text("")
    found = BenchmarkSource("bag", tmp_path).read()
    assert [case.name for case in found.cases] == ["good"]
    assert found.cases[0].first_stamp is not None
    assert sorted(found.broken) == ["blind", "cut", "stray.db3"]
    assert "has no truth to start on" in found.broken["blind"]
    assert "is truncated" in found.broken["cut"]
    (alone,) = BenchmarkSource("bag", tmp_path / "good").read().cases
    assert alone.name == "good"


def test_one_bag_with_a_box(make_sequence: MakeSequence, tmp_path: Path) -> None:
    blind = replace(make_sequence(count=3), boxes=np.full((3, 4), np.nan))
    make_bag(blind, tmp_path / "blind")
    with pytest.raises(DataError, match="with --box x,y,w,h"):
        BagSource(tmp_path / "blind").read()
    (case,) = BagSource(tmp_path / "blind", box=Box(10, 30, 26, 20)).read().cases
    assert (case.start, case.start_box, case.scored) == (0, Box(10, 30, 26, 20), False)


@pytest.mark.parametrize(
    ("layout", "words"),
    [("nothing", "layout 'nothing' is not one of"), ("folder", "holds no sequence"),
     ("bag", "holds no sequence"), ("otb", "holds no sequence")],
)  # fmt: skip
def test_nothing_to_read_says_so(layout: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=words):
        BenchmarkSource(layout, tmp_path).read()
    with pytest.raises(DataError):
        BenchmarkSource(layout, tmp_path / "nowhere").read()


def test_reading_leaves_the_standard_output_alone(
    make_sequence: MakeSequence,
    write_sequence: WriteSequence,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "val"
    folder = write_sequence(make_sequence("GOT-10k_Val_1", count=3), home)
    for number, image in enumerate(sorted((folder / "img").iterdir()), start=1):
        image.rename(folder / f"{number:08d}.jpg")
    (folder / "groundtruth_rect.txt").rename(folder / "groundtruth.txt")
    for label, text in (("absence", "0\n0\n0\n"), ("cover", "8\n8\n8\n")):
        (folder / f"{label}.label").write_text(text)
    (home / "list.txt").write_text("GOT-10k_Val_1\n")
    found = BenchmarkSource("got10k", tmp_path).read()
    assert len(found.cases) == 1
    assert capsys.readouterr().out == ""


def test_names_must_differ(make_sequence: MakeSequence, tmp_path: Path) -> None:
    make_bag(make_sequence(count=2), tmp_path / "one")
    shutil.copy(tmp_path / "one" / "one.mcap", tmp_path / "one.mcap")
    with pytest.raises(DataError, match="2 sequences are named 'one'"):
        BenchmarkSource("bag", tmp_path).read()


def test_only_the_start_is_known(make_sequence: MakeSequence) -> None:
    hidden = make_sequence(count=4, absent=(1, 2, 3))
    assert not Case(hidden).scored
    assert Case(make_sequence(count=4, absent=(1, 2))).scored


def test_the_fingerprint_follows_the_data(make_sequence: MakeSequence) -> None:
    sequence = make_sequence(count=6)
    own = Case(sequence).fingerprint()
    assert own == Case(make_sequence(count=6)).fingerprint()

    def broken(index: int) -> None:
        raise DataError(f"{index} is broken")

    others = [
        replace(sequence, name="bus"),
        replace(sequence, boxes=sequence.boxes + 1),
        replace(sequence, stamps=sequence.stamps * 2),
        replace(sequence, load=lambda index: sequence.load(index) // 2),
        replace(sequence, load=broken),
    ]
    prints = {Case(other).fingerprint() for other in others}
    prints |= {own, Case(sequence, box=Box(1, 2, 3, 4)).fingerprint()}
    assert len(prints) == 7
