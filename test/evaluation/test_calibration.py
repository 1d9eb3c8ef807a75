"""evaluation.calibration: the fit, whose frames count, the file that comes out, what is refused."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from typer.testing import CliRunner

from vil_tracker_core import weights
from vil_tracker_core.cli import app
from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation.calibration import (
    CLAIMS,
    Followed,
    calibrate,
    fit_scale,
    follow,
    regions,
)
from vil_tracker_core.geometry import Box, Image, to_xywh
from vil_tracker_core.tracking.network import TorchNetwork
from vil_tracker_core.tracking.online import OnlineTracker, TrackState
from vil_tracker_core.weights import Calibration, WeightsError

MakeSequence = Callable[..., Sequence]
WriteSequence = Callable[[Sequence, Path], Path]


@pytest.fixture(scope="module")
def network(tiny_weights: Path) -> TorchNetwork:
    return TorchNetwork(weights.load(tiny_weights))


@pytest.fixture
def root(make_sequence: MakeSequence, write_sequence: WriteSequence, tmp_path: Path) -> Path:
    """Five sequences: enough frames to fit on, and one to check on."""
    for name in ("a", "bb", "ccc", "dddd", "spare"):
        write_sequence(make_sequence(name, count=14), tmp_path / "data")
    return tmp_path / "data"


@pytest.fixture
def half_weights(tiny_weights: Path, tmp_path: Path) -> Path:
    """The same net in half precision, as a training writes it, with a scale and a provenance."""
    loaded = weights.load(tiny_weights)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in loaded.tensors.items()}
    made = replace(
        loaded,
        tensors=tensors,
        calibration=Calibration((2.0, 0.5, 1.0, 3.0), "an older split"),
        provenance={"step": 7},
    )
    weights.save(tmp_path / "half.safetensors", made)
    return tmp_path / "half.safetensors"


# --- The fit --------------------------------------------------------------------------------------


@settings(max_examples=20)
@given(scale=st.lists(st.floats(0.05, 20), min_size=4, max_size=4), seed=st.integers(0, 99))
def test_the_scale_of_normal_errors_is_found(scale: list[float], seed: int) -> None:
    ratios = np.random.default_rng(seed).normal(0, scale, (20_000, 4))
    assert fit_scale([ratios]) == pytest.approx(scale, rel=0.05)


def test_a_few_wild_frames_do_not_set_the_scale() -> None:
    ratios = np.random.default_rng(0).normal(0, 2, (10_000, 4))
    ratios[::20] = 200.0
    assert fit_scale([ratios]) == pytest.approx([2] * 4, rel=0.15)
    assert np.sqrt((ratios**2).mean()) > 40  # what maximum likelihood would say


def test_a_sequence_counts_the_same_however_long_it_is() -> None:
    """Variances average: 1 and 7 give 4, whatever the frames; too short a one is left out."""
    rng = np.random.default_rng(0)
    calm, wild = rng.normal(0, 1, (40_000, 4)), rng.normal(0, math.sqrt(7), (10_000, 4))
    short = np.full((9, 4), 100.0)
    assert fit_scale([calm, wild, short]) == pytest.approx([2] * 4, rel=0.05)


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(DataError, match=r"on 29 frames .* at least 30 are needed"):
        fit_scale([np.ones((29, 4))])
    with pytest.raises(DataError, match="not four positive numbers"):
        fit_scale([np.zeros((100, 4))])


# --- Coverage -------------------------------------------------------------------------------------


def test_coverage_of_claims_that_are_right_and_of_claims_that_are_half() -> None:
    rng = np.random.default_rng(1)
    count, sigma = 40_001, np.array([2.0, 3.0, 1.0, 0.5])
    truth = np.tile([100.0, 100.0, 30.0, 20.0], (count, 1))
    ratios = rng.normal(0, 1, (count, 4))
    boxes = to_xywh(np.array([115.0, 110.0, 30.0, 20.0]) - ratios * sigma)
    ratios[0] = np.nan  # the start
    covariances = np.tile(np.diag(sigma**2), (count, 1, 1))
    run = Followed("a", truth, boxes, covariances, ratios)
    for row in regions([run], (1, 1, 1, 1), "fit", "new"):
        assert row.frames == count - 1
        np.testing.assert_allclose([row.centre, row.box], [[0.5, 0.9, 0.95]] * 2, atol=0.01)
    halved = replace(run, covariances=covariances / 4)
    for row in regions([halved], (0.5,) * 4, "fit", "old"):
        # chi-squared at a quarter of the quantiles, 2 and 4 degrees of freedom
        np.testing.assert_allclose(row.centre, [0.159, 0.438, 0.527], atol=0.01)
        np.testing.assert_allclose(row.box, [0.067, 0.256, 0.332], atol=0.01)


def test_frames_that_do_not_count_are_in_the_last_claim_alone() -> None:
    count = 11
    truth = np.tile([0.0, 0.0, 10.0, 10.0], (count, 1))
    boxes, ratios = truth.copy(), np.full((count, 4), 0.1)
    boxes[6:], ratios[6:], ratios[0] = 500.0, np.nan, np.nan
    run = Followed("a", truth, boxes, np.tile(np.eye(4), (count, 1, 1)), ratios)
    rows = regions([run], (1, 1, 1, 1), "fit", "old")
    assert [row.claim for row in rows] == list(CLAIMS)
    assert [row.frames for row in rows] == [5, 5, 10]
    assert [float(row.box[0]) for row in rows] == [1, 1, 0.5]


# --- Running the tracker --------------------------------------------------------------------------


def test_the_tracker_runs_as_in_production(
    make_sequence: MakeSequence, network: TorchNetwork
) -> None:
    """Box for box as OnlineTracker; a frame counts neither without truth nor once it is lost."""
    sequence = make_sequence(count=40, absent=(0, 5, 6))
    steps: list[None] = []
    run = follow(network, sequence, lambda: steps.append(None))
    tracker = OnlineTracker(network)
    results = [tracker.init(sequence.load(1), Box(*sequence.boxes[1]), float(sequence.stamps[1]))]
    for index in range(2, 40):
        results.append(tracker.update(sequence.load(index), float(sequence.stamps[index])))
    np.testing.assert_array_equal(run.boxes, [result.box for result in results])
    np.testing.assert_array_equal(run.covariances, [result.covariance for result in results])
    assert len(steps) == len(run.truth) - 1 == 38

    counts = np.isfinite(run.ratios).all(axis=1)
    lost = np.array([result.state is TrackState.LOST for result in results])
    assert lost.any()  # random weights see nothing
    assert counts.any()
    assert not counts[[0, 4, 5]].any()
    assert not counts[lost].any()
    assert len(run.counted) == counts.sum()


def test_the_ratios_are_those_of_the_net_without_a_scale(
    make_sequence: MakeSequence, tiny_weights: Path, network: TorchNetwork
) -> None:
    loaded = weights.load(tiny_weights)
    scaled = TorchNetwork(replace(loaded, calibration=Calibration((3.0, 0.5, 2.0, 7.0), "")))
    plain, other = (follow(net, make_sequence(count=4)) for net in (network, scaled))
    assert np.isfinite(plain.ratios[1]).all()
    np.testing.assert_allclose(other.ratios[1], plain.ratios[1], rtol=1e-9)


def test_sequences_that_cannot_be_followed_are_named(
    make_sequence: MakeSequence, network: TorchNetwork
) -> None:
    sequence = make_sequence("spare", count=4)

    def broken(index: int) -> Image:
        if index:
            raise DataError("frame 2 is broken")
        return sequence.load(index)

    for boxes, words in (
        (np.full((4, 4), np.nan), "sequence spare has no box to start on"),
        (sequence.boxes + 900.0, "sequence spare cannot be started: .* outside the 128x96"),
    ):
        with pytest.raises(DataError, match=words):
            follow(network, replace(sequence, boxes=boxes))
    with pytest.raises(DataError, match="frame 2 is broken"):
        follow(network, replace(sequence, load=broken))


# --- The command ----------------------------------------------------------------------------------


def test_the_file_has_the_scale_the_old_tensors_and_where_it_is_from(
    root: Path, half_weights: Path, tmp_path: Path
) -> None:
    made = calibrate(half_weights, root, ["a", "bb", "ccc", "dddd"], check=root)
    assert made.old.scale == (2.0, 0.5, 1.0, 3.0)
    assert [(row.split, row.scale) for row in made.regions[::3]] == [
        ("fit", "old"), ("check", "old"), ("fit", "new"), ("check", "new"),
    ]  # fmt: skip
    assert made.regions[2].frames == 4 * 13
    assert made.regions[5].frames == 13  # the spare one

    weights.save(tmp_path / "new.safetensors", made.weights)
    back = weights.load(tmp_path / "new.safetensors")
    assert back.calibration == made.weights.calibration
    assert back.calibration.scale != made.old.scale
    counted = back.provenance["calibration"]["frames"]
    assert list(counted) == ["a", "bb", "ccc", "dddd"]
    assert sum(counted.values()) == made.regions[0].frames
    assert back.provenance["calibration"]["scale_before"] == [2.0, 0.5, 1.0, 3.0]
    assert back.provenance["step"] == 7
    assert back.calibration.fitted_on.endswith("frames of 4 sequences: a, bb, ccc, dddd")

    old, new = load_file(half_weights), load_file(tmp_path / "new.safetensors")
    assert old.keys() == new.keys()
    assert {tensor.dtype for tensor in new.values() if tensor.is_floating_point()} == {
        torch.float16
    }
    assert all(torch.equal(new[name], old[name]) for name in old)


def test_bad_inputs_are_refused_by_a_sentence(
    root: Path, half_weights: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds no sequence x, y: choose among a, bb, ccc"):
        calibrate(half_weights, root, ["a", "y", "x"])
    with pytest.raises(DataError, match="none is left to check on"):
        calibrate(half_weights, root, check=root)
    with pytest.raises(DataError, match="is not a folder"):
        calibrate(half_weights, tmp_path / "nowhere")
    with pytest.raises(WeightsError, match="does not exist"):
        calibrate(tmp_path / "none.safetensors", root)
    with pytest.raises(DataError, match=r"at least 30 are needed"):
        calibrate(half_weights, root, ["a"])


def test_the_command(
    root: Path, half_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    out = tmp_path / "new.safetensors"
    arguments = ["calibrate", str(half_weights), str(root), "--out", str(out)]
    done = CliRunner().invoke(app, [*arguments, "--only", "a,bb, ccc,dddd"])
    assert done.exit_code == 0, done.output
    fitted = weights.load(out).calibration
    new = next(line for line in done.stdout.splitlines() if line.startswith("new scale"))
    assert ", ".join(f"{value:.3f}" for value in fitted.scale) in new
    assert done.stdout.count("tracker, all ") == 2  # nothing is cut on a narrow terminal

    again = CliRunner().invoke(app, arguments)
    assert str(again.exception) == f"{out} exists already: choose another name"
