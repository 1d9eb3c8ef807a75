"""evaluation.peers: OpenCV's trackers, an ONNX file, ours, and how they are named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.peers import (
    OnnxTracker,
    OpenCvTracker,
    Tracker,
    changed,
    parse_trackers,
)
from vil_tracker_core.geometry import Box, iou
from vil_tracker_core.tracking.online import TrackerConfig

MakeSequence = Callable[..., Sequence]


def follow(tracker: Tracker, sequence: Sequence) -> list[Box | None]:
    first = Box(*sequence.boxes[0].tolist())
    tracker.init(sequence.load(0), first, 0.0)
    stamps = sequence.stamps.tolist()
    return [
        tracker.update(sequence.load(index), stamps[index]).box for index in range(1, len(sequence))
    ]


def make_onnx(
    path: Path,
    unit: tuple[float, ...] = (0.5, 0.5, 0.25, 0.25),
    names: tuple[str, str] = ("template", "search"),
    side: int | str = 32,
    **meta: str,
) -> Path:
    """A network that says ``unit`` whatever it sees; its score is the mean of the search crop's
    first channel, over 255."""
    shapes = {names[0]: [1, 3, 16, 16], names[1]: [1, 3, side, side]}
    inputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in shapes.items()]
    outputs = [
        helper.make_tensor_value_info("box", TensorProto.FLOAT, [1, 4]),
        helper.make_tensor_value_info("score", TensorProto.FLOAT, [1]),
    ]
    constants = {
        "unit": np.array([unit], np.float32),
        "begin": np.array([0], np.int64),
        "end": np.array([1], np.int64),
        "axis": np.array([1], np.int64),
        "white": np.array([255], np.float32),
        "flat": np.array([1], np.int64),
        "zero": np.array(0, np.float32),
    }
    nodes = [
        helper.make_node("ReduceMean", [names[0]], ["seen"], keepdims=0),
        helper.make_node("Mul", ["seen", "zero"], ["nothing"]),
        helper.make_node("Add", ["unit", "nothing"], ["box"]),
        helper.make_node("Slice", [names[1], "begin", "end", "axis"], ["channel"]),
        helper.make_node("ReduceMean", ["channel"], ["grey"], keepdims=0),
        helper.make_node("Div", ["grey", "white"], ["share"]),
        helper.make_node("Reshape", ["share", "flat"], ["score"]),
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "made", inputs, outputs, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    for key, value in meta.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, str(path))
    return path


# --- OpenCV ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csrt", "kcf", "mil"])
def test_opencv_follows_a_patch(kind: str, make_sequence: MakeSequence) -> None:
    sequence = make_sequence(count=4)
    boxes = follow(OpenCvTracker(kind), sequence)
    last = boxes[-1]
    assert last is not None
    assert float(iou(last, sequence.boxes[-1])) > 0.5


def test_csrt_gives_what_opencv_gives(make_sequence: MakeSequence) -> None:
    """Frame for frame the boxes of a tracker that is driven by hand."""
    sequence = make_sequence(count=6)
    tracker = cv2.TrackerCSRT_create()
    tracker.init(sequence.load(0), [int(v) for v in sequence.boxes[0]])
    expected = [tracker.update(sequence.load(index))[1] for index in range(1, 6)]
    assert follow(OpenCvTracker("csrt"), sequence) == [Box(*map(float, e)) for e in expected]


def test_opencv_says_when_it_has_no_box(make_sequence: MakeSequence) -> None:
    tracker = OpenCvTracker("kcf")
    sequence = make_sequence()
    tracker.init(sequence.load(0), Box(*sequence.boxes[0]), 0.0)
    tracker.update(sequence.load(1), 0.03)
    answer = tracker.update(np.zeros((96, 128, 3), np.uint8), 0.07)
    assert (answer.box, answer.score, answer.covariance) == (None, None, None)


def test_opencv_starts_on_a_box_over_the_edge_and_on_fractions(
    make_sequence: MakeSequence,
) -> None:
    frame = make_sequence().load(0)
    tracker = OpenCvTracker("kcf")
    tracker.init(frame, Box(-10.4, -5.5, 30.7, 30.2), 0.0)
    answer = tracker.update(frame, 0.1)
    assert answer.box is not None
    assert answer.box.x >= -1


@pytest.mark.parametrize(
    ("kind", "box", "words"),
    [
        ("kcf", Box(500, 500, 20, 20), "lies outside the 128x96 image"),
        ("csrt", Box(10, 10, float("nan"), 5), "is not finite"),
        ("mil", Box(10, 10, 4, 30), "mil cannot start on a box of 4x30 px: it needs 5 px"),
    ],
)
def test_opencv_refuses_a_box(kind: str, box: Box, words: str, make_sequence: MakeSequence) -> None:
    with pytest.raises(ValueError, match=words):
        OpenCvTracker(kind).init(make_sequence().load(0), box, 0.0)


def test_update_needs_init(tmp_path: Path, make_sequence: MakeSequence) -> None:
    trackers: list[Tracker] = [OpenCvTracker("kcf"), OnnxTracker(make_onnx(tmp_path / "n.onnx"))]
    for tracker in trackers:
        with pytest.raises(RuntimeError, match="needs an init"):
            tracker.update(make_sequence().load(0), 0.0)


# --- ONNX -----------------------------------------------------------------------------------------


def test_onnx_maps_crop_to_frame(tmp_path: Path) -> None:
    # 4 * sqrt(20 * 20) = 80 px of crop around (50, 40), from (10, 0); a tenth to the right
    tracker = OnnxTracker(make_onnx(tmp_path / "n.onnx", unit=(0.6, 0.5, 0.25, 0.25)))
    frame = np.zeros((90, 120, 3), np.uint8)
    frame[..., 2] = 51  # red, which is first in RGB: 51 / 255
    tracker.init(frame, Box(40, 30, 20, 20), 0.0)
    first, second = tracker.update(frame, 0.1), tracker.update(frame, 0.2)
    assert first.box == pytest.approx(Box(48, 30, 20, 20))
    assert second.box == pytest.approx(Box(56, 30, 20, 20))  # searched around the last box
    assert first.score == pytest.approx(0.2)
    assert first.covariance is None


def test_onnx_metadata_says_colour_and_crop(tmp_path: Path) -> None:
    path = make_onnx(tmp_path / "n.onnx", colour="bgr", search_factor="2")
    tracker = OnnxTracker(path)
    frame = np.zeros((90, 120, 3), np.uint8)
    frame[..., 0] = 51
    tracker.init(frame, Box(40, 30, 20, 20), 0.0)
    answer = tracker.update(frame, 0.1)
    assert answer.box == pytest.approx(Box(45, 35, 10, 10))
    assert answer.score == pytest.approx(0.2)


def test_onnx_says_nothing_where_its_box_is_none(tmp_path: Path) -> None:
    tracker = OnnxTracker(make_onnx(tmp_path / "n.onnx", unit=(0.5, 0.5, float("nan"), 1)))
    frame = np.zeros((90, 120, 3), np.uint8)
    tracker.init(frame, Box(40, 30, 20, 20), 0.0)
    assert tracker.update(frame, 0.1).box is None


def test_onnx_files_that_do_not_fit_say_why(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no network")
    wrong = {
        "nowhere.onnx": "does not exist",
        "text.onnx": "is not an ONNX file that can be run",
        "names.onnx": r"has inputs \['image', 'search'\].* needs inputs template and search",
        "free.onnx": "input search is .* not a fixed",
        "colour.onnx": "colour must be rgb or bgr",
        "factor.onnx": "numbers from 1 to 16",
    }
    make_onnx(tmp_path / "names.onnx", names=("image", "search"))
    make_onnx(tmp_path / "free.onnx", side="any")
    make_onnx(tmp_path / "colour.onnx", colour="grey")
    make_onnx(tmp_path / "factor.onnx", template_factor="wide")
    for name, words in wrong.items():
        with pytest.raises(ValueError, match=words):
            OnnxTracker(tmp_path / name)


# --- Names and fingerprints -----------------------------------------------------------------------


def test_trackers_are_named(tmp_path: Path, tiny_weights: Path) -> None:
    network = make_onnx(tmp_path / "my net.onnx")
    specs = parse_trackers(f" csrt, KCF ,onnx:{network},{tiny_weights}", threads=2)
    assert [(s.name, s.kind, s.threads) for s in specs] == [
        ("csrt", "opencv", 2),
        ("kcf", "opencv", 2),
        ("my_net", "onnx", 2),
        ("tiny", "vil", 2),
    ]
    assert isinstance(specs[0].open(), OpenCvTracker)
    assert isinstance(specs[2].open(), OnnxTracker)


def test_our_tracker_answers_with_covariance(
    tiny_weights: Path, make_sequence: MakeSequence
) -> None:
    sequence = make_sequence()
    tracker = parse_trackers(str(tiny_weights))[0].open()
    tracker.init(sequence.load(0), Box(*sequence.boxes[0].tolist()), 0.0)
    answer = tracker.update(sequence.load(1), 0.03)
    assert answer.box is not None
    assert answer.covariance is not None
    assert answer.covariance.shape == (4, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("nothing", "tracker 'nothing' is not a shipped preset"),
        ("onnx:none.onnx", "none.onnx does not exist"),
        ("", "no tracker is named"),
        ("csrt,CSRT", "two trackers are named 'csrt'"),
        ("vil_nano+speed=2", r"tracker 'vil_nano\+speed=2': speed=2: there is no such setting"),
        ("vil_nano+film=loud", "film=loud: film: 'loud' is not one of"),
        ("vil_nano+template_every=often", "template_every=often: invalid literal"),
        ("vil_nano+depth=8", "weights do not fit vil_nano: .* tensors are missing"),
    ],
)
def test_wrong_names_are_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_trackers(text)


def test_settings_are_changed_by_name(tiny_weights: Path, make_sequence: MakeSequence) -> None:
    names = ["film=off", "memory=carry", "template_every=0+confident=0.9", "backend=torch"]
    specs = parse_trackers(",".join(["vil_nano", *(f"vil_nano+{name}" for name in names)]))
    assert [spec.name for spec in specs[1:]] == [f"vil_nano+{name}" for name in names]
    assert len({spec.fingerprint() for spec in specs}) == len(specs)
    shipped = weights.load(weights.find("vil_nano"))
    without, carrying, single, eager = (changed(shipped, spec.changes) for spec in specs[1:])
    assert without.loaded.config == replace(shipped.config, film="off")
    assert not any(name.startswith("film.") for name in without.loaded.tensors)
    assert carrying.loaded.config.memory == "carry"
    assert carrying.loaded.tensors.keys() == shipped.tensors.keys()
    assert single.config == TrackerConfig(template_every=0, confident=0.9)
    assert single.loaded is shipped
    assert eager.network == {"backend": "torch"}

    sequence = make_sequence()
    tracker = parse_trackers(f"{tiny_weights}+film=off+backend=torch")[0].open()
    tracker.init(sequence.load(0), Box(*sequence.boxes[0].tolist()), 0.0)
    assert tracker.update(sequence.load(1), 0.03).box is not None


def test_a_plus_in_a_files_name_is_no_setting(tmp_path: Path, tiny_weights: Path) -> None:
    copy = tmp_path / "a+b.safetensors"
    shutil.copy(tiny_weights, copy)
    (spec,) = parse_trackers(f"{copy}+film=off")
    assert (spec.name, spec.path) == ("a+b+film=off", copy)


def test_the_fingerprint_follows_the_file(tmp_path: Path, tiny_weights: Path) -> None:
    copy = tmp_path / "tiny.safetensors"
    shutil.copy(tiny_weights, copy)
    first, second = parse_trackers(str(tiny_weights))[0], parse_trackers(str(copy))[0]
    assert first.fingerprint() == second.fingerprint()  # wherever the file lies
    assert first.fingerprint() != parse_trackers(str(copy), threads=2)[0].fingerprint()
    copy.write_bytes(copy.read_bytes()[:-1] + b"\x01")
    assert first.fingerprint() != second.fingerprint()
    assert parse_trackers("csrt")[0].fingerprint() != parse_trackers("kcf")[0].fingerprint()
