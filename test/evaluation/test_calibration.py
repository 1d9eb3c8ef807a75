"""evaluation.calibration: the fit, which frames count, the file that comes out, what is refused."""

from __future__ import annotations

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
    LEVELS,
    Followed,
    calibrate,
    covered,
    fit,
    follow,
)
from vil_tracker_core.geometry import Box, Image, to_cxcywh, to_xywh
from vil_tracker_core.regions import DEGREES_OF_FREEDOM
from vil_tracker_core.tracking.network import TorchNetwork
from vil_tracker_core.tracking.online import OnlineTracker, TrackState
from vil_tracker_core.tracking.uncertainty import Uncertainty
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
    """The same net in half precision, as a training writes it, calibrated and with provenance."""
    loaded = weights.load(tiny_weights)
    tensors = {k: v.half() if v.is_floating_point() else v for k, v in loaded.tensors.items()}
    made = replace(
        loaded,
        tensors=tensors,
        calibration=Calibration((2.0, 0.5, 1.0, 3.0), (0.2, 0.9), 0.3, "an older split"),
        provenance={"step": 7},
    )
    weights.save(tmp_path / "half.safetensors", made)
    return tmp_path / "half.safetensors"


# --- The fit --------------------------------------------------------------------------------------


def drawn(seed: int, calibration: Calibration, count: int = 4000) -> Followed:
    """A run whose errors are drawn from what a calibration says, at ages up to 15 s."""
    rng = np.random.default_rng(seed)
    deviations = rng.uniform(1, 6, (count, 4))
    known = Uncertainty(
        deviations[:, :, None] ** 2 * np.eye(4),
        rng.uniform(0.01, 0.1, (count, 4)),
        np.linspace(0, 15, count),
    )
    covariances = known.covariance(calibration)
    nu = DEGREES_OF_FREEDOM
    # by definition: a normal vector over the root of an independent chi-squared's mean
    normal = rng.normal(size=(count, 4)) * np.sqrt(np.diagonal(covariances, axis1=1, axis2=2))
    errors = normal * np.sqrt((nu - 2) / nu / (rng.chisquare(nu, (count, 1)) / nu))
    truth = np.tile([100.0, 100.0, 300.0, 200.0], (count, 1))
    return Followed("drawn", truth, to_xywh(to_cxcywh(truth) - errors), known)


@settings(max_examples=5, deadline=None)
@given(
    spread=st.tuples(*[st.floats(0.3, 3)] * 4),
    settling=st.tuples(st.floats(0.2, 1.0), st.floats(0.2, 1.0)),
    drift=st.floats(0.05, 0.5),
    seed=st.integers(0, 99),
)
def test_the_calibration_that_errors_were_drawn_from_is_found(
    spread: tuple[float, float, float, float],
    settling: tuple[float, float],
    drift: float,
    seed: int,
) -> None:
    """By the deviation that it gives at any age: spread, settling and drift can stand in for one
    another a little."""
    true = Calibration(spread, settling, drift)
    found = fit([drawn(seed, true), drawn(seed + 1000, true)])
    for age in (0.2, 1.0, 5.0, 15.0):
        known = Uncertainty(np.eye(4), np.zeros(4), np.array(age))
        theirs, mine = (np.sqrt(np.diag(known.covariance(each))) for each in (true, found))
        np.testing.assert_allclose(mine, theirs, rtol=0.12 if age > 0.5 else 0.35)
    assert found.fitted_on == "7998 frames of 2 sequences"


def test_a_few_wild_frames_do_not_set_the_spread() -> None:
    run = drawn(0, Calibration())
    boxes = run.boxes.copy()
    boxes[::20, :2] += 5000
    assert fit([replace(run, boxes=boxes)]).spread == pytest.approx([1] * 4, rel=0.35)


def test_a_sequence_counts_the_same_however_long_it_is() -> None:
    def wide(count: int) -> Followed:
        """Its errors are three times as large as what is known of it says."""
        run = drawn(4, Calibration(), count=count)
        ninth = run.uncertainty._replace(filtered=run.uncertainty.filtered / 9)
        return replace(run, uncertainty=ninth)

    calm = drawn(3, Calibration(), count=1000)
    short, long = fit([calm, wide(1000)]).spread, fit([calm, wide(10_000)]).spread
    assert short == pytest.approx(long, rel=0.15)
    assert max(short) < 2.3 < min(fit([wide(1000)]).spread)  # frames pooled, it would be near 3


def test_too_few_frames_are_refused() -> None:
    run = drawn(0, Calibration(), count=30)
    with pytest.raises(DataError, match=r"on 29 frames .* at least 30 are needed"):
        fit([run])


# --- Coverage -------------------------------------------------------------------------------------


def test_coverage_of_claims_that_are_right_and_of_claims_that_are_half() -> None:
    true = Calibration((2.0, 1.0, 0.5, 1.0), (0.3, 0.6), 0.2)
    run = drawn(1, true, count=40_001)
    right = covered([run], true, "fit", "new")
    assert (right.split, right.calibration, right.frames) == ("fit", "new", 40_000)
    np.testing.assert_allclose([right.centre, right.box], [LEVELS] * 2, atol=0.01)
    quarter = run.uncertainty._replace(
        filtered=run.uncertainty.filtered / 4, lasting=run.uncertainty.lasting / 4
    )
    halved = covered([replace(run, uncertainty=quarter)], true, "check", "old")
    # of two coordinates, P(r^2 <= q) is 1 - (1 + q)^(-3 / 2), here at a quarter of the radii
    radii = (1 - np.array(LEVELS)) ** (-2 / 3) - 1
    np.testing.assert_allclose(halved.centre, 1 - (1 + radii / 4) ** -1.5, atol=0.01)


def test_frames_without_truth_and_that_of_the_start_do_not_count() -> None:
    run = drawn(2, Calibration(), count=41)
    truth = run.truth.copy()
    truth[7:11] = np.nan
    gap = replace(run, truth=truth)
    assert gap.frames == 36
    assert covered([gap, run], Calibration(), "fit", "old").frames == 36 + 40


# --- Running the tracker --------------------------------------------------------------------------


def test_the_tracker_runs_as_in_production(
    make_sequence: MakeSequence, network: TorchNetwork
) -> None:
    """Box for box and covariance for covariance as OnlineTracker, lost or not."""
    sequence = make_sequence(count=40, absent=(0, 5, 6))
    steps: list[None] = []
    run = follow(network, sequence, lambda: steps.append(None))
    tracker = OnlineTracker(network)
    results = [tracker.init(sequence.load(1), Box(*sequence.boxes[1]), float(sequence.stamps[1]))]
    for index in range(2, 40):
        results.append(tracker.update(sequence.load(index), float(sequence.stamps[index])))
    np.testing.assert_array_equal(run.boxes, [result.box for result in results])
    published = run.uncertainty.covariance(network.calibration)
    np.testing.assert_array_equal(published, [result.covariance for result in results])
    assert any(result.state is TrackState.LOST for result in results)  # random weights see nothing
    assert len(steps) == len(run.truth) - 1 == 38
    assert run.frames == 36


def test_the_run_does_not_depend_on_the_calibration(
    make_sequence: MakeSequence, tiny_weights: Path, network: TorchNetwork
) -> None:
    odd = Calibration((3.0, 0.5, 2.0, 7.0), (2.0, 0.1))
    other = TorchNetwork(replace(weights.load(tiny_weights), calibration=odd))
    sequence = make_sequence(count=12)
    one, two = (follow(net, sequence) for net in (network, other))
    np.testing.assert_array_equal(one.boxes, two.boxes)
    for mine, theirs in zip(one.uncertainty, two.uncertainty, strict=True):
        np.testing.assert_array_equal(mine, theirs)


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


def test_the_file_has_the_calibration_the_old_tensors_and_where_it_is_from(
    root: Path, half_weights: Path, tmp_path: Path
) -> None:
    made = calibrate(half_weights, root, ["a", "bb", "ccc", "dddd"], check=root)
    assert made.old.spread == (2.0, 0.5, 1.0, 3.0)
    assert [(row.split, row.calibration, row.frames) for row in made.coverage] == [
        ("fit", "old", 4 * 13), ("fit", "new", 4 * 13),
        ("check", "old", 13), ("check", "new", 13),  # the spare one
    ]  # fmt: skip

    weights.save(tmp_path / "new.safetensors", made.weights)
    back = weights.load(tmp_path / "new.safetensors")
    assert back.calibration == made.weights.calibration
    assert back.calibration.spread != made.old.spread
    said = back.provenance["calibration"]
    assert said["frames"] == {"a": 13, "bb": 13, "ccc": 13, "dddd": 13}
    assert "3 degrees" in said["rule"]
    assert back.provenance["step"] == 7
    assert back.calibration.fitted_on == "52 frames of 4 sequences"

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
    new = next(line for line in done.stdout.splitlines() if line.startswith("new: "))
    for part in (fitted.spread, fitted.settling):
        assert ", ".join(f"{value:.3f}" for value in part) in new
    assert done.stdout.count("│ 52 ") == 2  # nothing is cut on a narrow terminal

    again = CliRunner().invoke(app, arguments)
    assert str(again.exception) == f"{out} exists already: choose another name"
