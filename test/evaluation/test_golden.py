"""evaluation.golden: the bundled clips' boxes are what they were, and a fault is noticed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from vil_tracker_core.cli import app
from vil_tracker_core.data.sequence import DataError, Sequence
from vil_tracker_core.evaluation import golden
from vil_tracker_core.evaluation.golden import Golden, Run
from vil_tracker_core.geometry import Box, Crop
from vil_tracker_core.tracking.kalman import KalmanConfig
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import OnlineTracker, TrackerConfig

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def kept() -> Golden:
    """The golden files; with other weights shipped, the message says what to do."""
    found = golden.read(golden.golden_folder(ROOT))
    golden.check_weights(found)
    return found


@pytest.fixture(scope="module")
def network() -> Network:
    return golden.open_golden_network()


@pytest.fixture(scope="module")
def clips() -> dict[str, Sequence]:
    """The clips' frames decoded once."""

    def decoded(clip: Sequence) -> Sequence:
        frames = [clip.load(index) for index in range(golden.FRAMES)]
        return replace(clip, load=frames.__getitem__)

    return {name: decoded(clip) for name, clip in golden.read_clips(ROOT).items()}


def beginning(run: Run, rows: int) -> Run:
    """The first rows of a run."""
    parts = (run.boxes, run.scores, run.states, run.sigmas, run.crops)
    return Run(run.name, *(part[:rows] for part in parts))


def said(
    network: Network, clips: dict[str, Sequence], kept: Golden, frames: int = golden.FRAMES
) -> list[str]:
    """What the comparison says of the clips' first frames."""
    lines = []
    for name, clip in clips.items():
        begun = beginning(kept.runs[name], frames - 1)
        lines += golden.faults(begun, golden.track_clip(network, clip, frames, begun))
    return lines


def test_the_clips_boxes_are_those_of_the_golden_files(
    network: Network, clips: dict[str, Sequence], kept: Golden
) -> None:
    assert list(kept.runs) == list(clips)
    assert said(network, clips, kept) == []


# --- A fault is noticed ---------------------------------------------------------------------------


FAULTS = ("search factor", "Kalman noise", "channels", "half a pixel", "sigma", "spread")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_out_of_bounds(
    fault: str,
    network: Network,
    clips: dict[str, Sequence],
    kept: Golden,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each small fault, put into the running code, is said of at least one clip."""
    if fault == "search factor":
        wider = replace(network.config, search_factor=1.02 * network.config.search_factor)
        monkeypatch.setattr(network, "config", wider)
    elif fault == "Kalman noise":
        normal = KalmanConfig()
        noisy = replace(normal, acceleration=2 * normal.acceleration, growth=2 * normal.growth)
        monkeypatch.setattr(golden, "TrackerConfig", lambda: TrackerConfig(kalman=noisy))
    elif fault == "channels":
        cut = Crop.cut
        monkeypatch.setattr(
            Crop, "cut", lambda self, frame: np.ascontiguousarray(cut(self, frame)[..., ::-1])
        )
    elif fault == "half a pixel":
        to_frame = Crop.to_frame

        def beside(self, unit):  # type: ignore[no-untyped-def]
            box = to_frame(self, unit)
            return box._replace(x=box.x + 0.5)

        monkeypatch.setattr(Crop, "to_frame", beside)
    elif fault == "sigma":
        step = network.step

        def surer(*args):  # type: ignore[no-untyped-def]
            found, memories = step(*args)
            return [one._replace(variance=one.variance / 1.05**2) for one in found], memories

        monkeypatch.setattr(network, "step", surer)
    else:
        a, b, c, d = network.calibration.spread
        wider_by_one = replace(network.calibration, spread=(a, 1.01 * b, c, d))
        monkeypatch.setattr(network, "calibration", wider_by_one)
    assert said(network, clips, kept, frames=25)


def test_a_state_and_a_crop_that_changed_are_named(kept: Golden) -> None:
    run = kept.runs["real"]
    states, crops = run.states.copy(), run.crops.copy()
    row = int(np.argmax(run.scores))  # far from the thresholds
    states[row] = 3
    crops[row] += 2
    text = " ".join(golden.faults(run, replace(run, states=states, crops=crops)))
    assert f"1 frames have another state, the first at row {row}: LOST instead of TRACKING" in text
    assert f"1 frames are searched elsewhere, the first at row {row}" in text


def test_a_box_that_is_not_a_number_is_a_fault(kept: Golden) -> None:
    run = kept.runs["real"]
    boxes = run.boxes.copy()
    boxes[3] = np.nan
    assert golden.faults(run, replace(run, boxes=boxes))


# --- Another CPU is not a fault -------------------------------------------------------------------


def test_a_crop_turned_by_rounding_is_pinned(
    network: Network, clips: dict[str, Sequence], kept: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One crop a pixel beside, as another CPU's last bit can turn it: the boxes that follow part
    in a free run, and do not in a pinned one."""
    frames, row = 25, 2
    around, calls = Crop.around.__func__, 0  # type: ignore[attr-defined]

    def turned(cls, box, factor, size):  # type: ignore[no-untyped-def]
        nonlocal calls
        calls += 1
        crop = around(cls, box, factor, size)
        return replace(crop, x=crop.x + 1) if calls == row + 2 else crop  # the first: template

    monkeypatch.setattr(Crop, "around", classmethod(turned))
    apart = []
    for pins in (None, kept.runs["real"]):
        calls = 0
        run = golden.track_clip(network, clips["real"], frames, pins)
        apart.append(golden.difference(beginning(kept.runs["real"], frames - 1), run))
    free, pinned = apart
    assert free.edge > golden.BOUNDS.edge
    assert pinned.pinned == 1 / (frames - 1)
    assert pinned.edge < golden.BOUNDS.edge
    assert not pinned.states
    assert not pinned.elsewhere


def test_another_runtime_is_within_the_bounds(clips: dict[str, Sequence], kept: Golden) -> None:
    """PyTorch sums in another order than onnxruntime, as another CPU does."""
    other = open_network(golden.PRESET, backend="torch", precision="float32")
    assert said(other, clips, kept, frames=20) == []


# --- What is kept ---------------------------------------------------------------------------------


def test_a_run_is_the_online_trackers(network: Network, clips: dict[str, Sequence]) -> None:
    clip = clips["rendered"]
    run = golden.track_clip(network, clip, 8)
    tracker = OnlineTracker(network)
    tracker.init(clip.load(0), Box(*clip.boxes[0].tolist()), float(clip.stamps[0]))
    for row in range(7):
        result = tracker.update(clip.load(row + 1), float(clip.stamps[row + 1]))
        assert tuple(run.boxes[row]) == result.box
        assert (run.scores[row], run.states[row]) == (result.score, result.state)


def test_files_hold_what_was_written(kept: Golden, tmp_path: Path) -> None:
    golden.write(kept, tmp_path)
    again = golden.read(tmp_path)
    assert again.checksum == kept.checksum
    for name, run in kept.runs.items():
        assert golden.difference(run, again.runs[name]) == (0, 0, 0, 0, 0, 0, 0)


def test_other_weights_ask_for_a_renewal() -> None:
    with pytest.raises(DataError, match=r"renew them with `vil-tracker golden --renew`"):
        golden.check_weights(Golden("0" * 64, {}))


def test_a_damaged_file_names_itself_and_the_remedy(kept: Golden, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"golden.json is missing: .*--renew"):
        golden.read(tmp_path)
    golden.write(kept, tmp_path)
    path = tmp_path / "real.csv"
    path.write_text(path.read_text()[:-20])
    with pytest.raises(DataError, match=r"real.csv is damaged .*--renew"):
        golden.read(tmp_path)


# --- The command ----------------------------------------------------------------------------------


def test_the_command_renews_and_says_what_changed(
    kept: Golden, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(golden, "FRAMES", 6)
    (tmp_path / "clips").symlink_to(ROOT / "clips")
    runs = {name: beginning(run, 5) for name, run in kept.runs.items()}
    boxes = runs["rendered"].boxes.copy()
    boxes[0, 0] += 30
    runs["rendered"] = replace(runs["rendered"], boxes=boxes)
    folder = golden.golden_folder(tmp_path)
    golden.write(replace(kept, runs=runs), folder)

    def command(*more: str) -> tuple[int, str]:
        done = CliRunner().invoke(app, ["golden", "--root", str(tmp_path), *more])
        return done.exit_code, done.output

    status, output = command()
    assert status == 1
    assert "clip rendered: the greatest difference of a box's edge, px, is 30, more than" in output
    assert "clip real" not in output
    status, output = command("--renew")
    assert status == 0
    row = next(line for line in output.splitlines() if "rendered" in line)
    clip, before, now, edge, _, states = (cell.strip() for cell in row.strip("│ ").split("│"))
    assert (clip, edge, states) == ("rendered", "30", "0")
    assert float(before) != pytest.approx(float(now), abs=1e-3)
    again = golden.read(folder)
    assert again.checksum == kept.checksum
    for name, run in again.runs.items():
        assert golden.faults(beginning(kept.runs[name], 5), run) == []


def test_the_command_outside_a_checkout_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rendered is missing: name the repository's folder"):
        golden.check(tmp_path)
