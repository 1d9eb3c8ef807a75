"""Exported graphs: the same answers as PyTorch, kept on disk, in every precision."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from crops import crops_of, run

from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.model.export import flatten
from vil_tracker_core.tracking import graphs
from vil_tracker_core.tracking.graphs import (
    GraphNetwork,
    OnnxNetwork,
    OpenvinoNetwork,
    _keep,
    _read,
    cache_folder,
)
from vil_tracker_core.tracking.network import Found, Network, TorchNetwork, open_network
from vil_tracker_core.tracking.online import OnlineTracker, TrackerConfig
from vil_tracker_core.weights import Weights, save

Make = Callable[..., Weights]
SHALLOW = {"depth": 2, "tmoe_blocks": 0}  # exported sooner
RUNTIMES = pytest.mark.parametrize("runtime", [OnnxNetwork, OpenvinoNetwork])


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of exported graphs."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert not cache_folder().exists()
    return cache_folder()


def several_frames(network: Network, frames: list[Image]) -> list[Found]:
    """Three tracks in a batch over four frames; one of them takes a second template halfway."""
    templates, searches = crops_of(frames, 32), crops_of(frames, 64)
    kept = [network.start([template]) for template in templates]
    answers: list[Found] = []
    for frame in range(4):
        found, kept = run(network, searches, kept)
        answers += found
        if frame == 1:  # between two frames, as a track does it
            kept[1] = network.renew(kept[1], templates[:2])
    return answers


@RUNTIMES
@pytest.mark.parametrize("memory", ["reset", "carry"])
def test_a_graph_finds_the_same_as_pytorch(
    make_weights: Make, frames: list[Image], runtime: type[GraphNetwork], memory: str
) -> None:
    loaded = make_weights(**SHALLOW, memory=memory)
    answers = [
        several_frames(network, frames) for network in (TorchNetwork(loaded), runtime(loaded))
    ]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours.unit, theirs.unit, atol=1e-4)
        np.testing.assert_allclose(ours.variance, theirs.variance, rtol=1e-2)
        np.testing.assert_allclose(ours.seen, theirs.seen, atol=1e-4)
        assert ours.score == pytest.approx(theirs.score, abs=1e-4)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_rows_of_a_batch_run_at_once_and_apart(
    make_weights: Make, frames: list[Image], threads: int
) -> None:
    """Three tracks: in turn, on two streams of which one has a second row, and all at once."""
    network = OpenvinoNetwork(make_weights(**SHALLOW), threads=threads)
    templates, searches = crops_of(frames, 32)[:3], crops_of(frames, 64)[:3]
    kept = [network.start([template]) for template in templates]
    together, after = run(network, searches, kept)
    assert len(network._bound["step", min(threads, 3)]) == min(threads, 3)
    for row in range(3):
        (alone,), (memory,) = run(network, searches[row : row + 1], kept[row : row + 1])
        np.testing.assert_allclose(together[row].unit, alone.unit, atol=1e-6)
        np.testing.assert_allclose(together[row].variance, alone.variance, rtol=1e-5)
        np.testing.assert_allclose(together[row].seen, alone.seen, atol=1e-4)
        assert together[row].score == pytest.approx(alone.score, abs=1e-6)
        for ours, theirs in zip(flatten(after[row]), flatten(memory), strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_the_joint_scan_runs_as_a_graph(make_weights: Make, frames: list[Image]) -> None:
    loaded = make_weights(**SHALLOW, scan="joint")
    answers = []
    for network in (TorchNetwork(loaded), OpenvinoNetwork(loaded)):
        (found,), (memory,) = run(
            network, crops_of(frames, 64)[:1], [network.start(crops_of(frames, 32)[:1])]
        )
        (again,), _ = run(network, crops_of(frames, 64)[1:2], [memory])
        answers.append((found, again))
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours.unit, theirs.unit, atol=1e-4)
    with pytest.raises(ValueError, match="2 templates: the graphs take 1"):
        network.start(crops_of(frames, 32)[:2])


@RUNTIMES
def test_a_gate_that_forgets_everything_is_no_nan(
    make_weights: Make, frames: list[Image], runtime: type[GraphNetwork]
) -> None:
    """Exported as log(sigmoid(f)), such a gate was NaN in onnxruntime on some real frames."""
    loaded = make_weights(**SHALLOW)
    biases = {
        name: tensor - 45.0
        for name, tensor in loaded.tensors.items()
        if name.endswith("forget_gate.bias")
    }
    assert biases
    loaded = Weights(loaded.config, {**loaded.tensors, **biases})
    answers = [
        several_frames(network, frames) for network in (TorchNetwork(loaded), runtime(loaded))
    ]
    for ours, theirs in zip(*answers, strict=True):
        np.testing.assert_allclose(ours.unit, theirs.unit, atol=1e-4)


def test_a_track_of_the_joint_scan_outlives_the_time_of_its_second_template(
    make_weights: Make, frames: list[Image]
) -> None:
    """Its graph takes one template; the track must not ask for two."""
    config = TrackerConfig(confident=0.0, doubtful=0.0, template_every=2, template_score=0.0)
    tracker = OnlineTracker(OnnxNetwork(make_weights(**SHALLOW, scan="joint")), config)
    tracker.init(frames[0], Box(60, 40, 30, 24), 0.0)
    for number in range(1, 6):
        assert tracker.update(frames[number % 3], number / 30).stamp == number / 30


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_stays_near_float32(make_weights: Make, frames: list[Image]) -> None:
    """Of random weights whose best cells are no near ties; evaluation/test_agreement.py has the
    bound in pixels."""
    loaded = make_weights(seed=1, **SHALLOW)
    exact, *reduced = (
        several_frames(network, frames)
        for network in (
            TorchNetwork(loaded),
            TorchNetwork(loaded, precision="bfloat16"),
            OpenvinoNetwork(loaded, precision="bfloat16"),
        )
    )
    for answers in reduced:
        shifts = [np.abs(a.unit - b.unit).max() for a, b in zip(exact, answers, strict=True)]
        assert 0 < max(shifts) < 0.01


@pytest.mark.usefixtures("bfloat16")
def test_bfloat16_rounds_the_products_and_nothing_else(make_weights: Make) -> None:
    network = OpenvinoNetwork(make_weights(**SHALLOW, stem="mobile"), precision="bfloat16")
    (request,) = network._requests("step", 1)
    precisions: dict[str, set[str]] = {}
    for op in request._request.get_compiled_model().get_runtime_model().get_ordered_ops():
        about = op.get_rt_info()
        kind = about["layerType"].get()
        precisions.setdefault(kind, set()).add(about["runtimePrecision"].get())
    for kind in ("MatMul", "FullyConnected"):
        assert precisions[kind] == {"bf16"}
    assert precisions["Convolution"] == {"f32", "bf16"}  # of the fine grids; of the others
    assert precisions["Reduce"] == {"f32"}


def test_bfloat16_is_taken_where_the_cpu_has_it(
    make_weights: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = make_weights(**SHALLOW)
    for has, wanted in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(graphs, "has_bfloat16", lambda has=has: has)
        assert open_network(loaded).precision == wanted
    assert open_network(loaded, precision="float32").precision == "float32"
    assert open_network(loaded, backend="onnxruntime").precision == "float32"
    assert open_network(loaded, backend="torch").precision == "float32"


@RUNTIMES
def test_graphs_are_exported_once_and_again_for_other_weights(
    make_weights: Make, cache: Path, runtime: type[GraphNetwork]
) -> None:
    loaded = make_weights(**SHALLOW)
    runtime(loaded)
    files = {file: file.stat().st_mtime_ns for file in cache.rglob("*.onnx")}
    assert {file.name for file in files} == {"start.onnx", "start_2.onnx", "step.onnx"}
    runtime(loaded)
    assert {file: file.stat().st_mtime_ns for file in cache.rglob("*.onnx")} == files
    norm = {"backbone.norm.weight": loaded.tensors["backbone.norm.weight"] + 1}
    runtime(Weights(loaded.config, {**loaded.tensors, **norm}))
    assert len(list(cache.iterdir())) == 2


class NothingCompiled:
    """OpenVINO's core, of which neither a graph nor a compilation is asked."""

    def __init__(self) -> None:
        self._core = graphs.openvino_core()
        self.get_property = self._core.get_property
        self.import_model = self._core.import_model


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_openvino_compiles_once_for_all_starts(
    make_weights: Make, frames: list[Image], monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    loaded = make_weights(**SHALLOW)
    first = several_frames(OpenvinoNetwork(loaded, threads=2, precision=precision), frames)
    core = NothingCompiled()
    with monkeypatch.context() as patch:
        patch.setattr(graphs, "openvino_core", lambda: core)
        network = OpenvinoNetwork(loaded, threads=2, precision=precision)
        second = several_frames(network, frames)  # a batch among them
    for ours, theirs in zip(first, second, strict=True):
        np.testing.assert_array_equal(ours.unit, theirs.unit)
        np.testing.assert_array_equal(ours.variance, theirs.variance)
        assert ours.score == theirs.score


def test_what_was_compiled_serves_no_other_precision_and_thread_count(
    make_weights: Make, cache: Path
) -> None:
    loaded = make_weights(**SHALLOW)
    for number, options in enumerate(
        ({"threads": 1}, {"threads": 2}, {"threads": 1, "precision": "bfloat16"}), start=1
    ):
        OpenvinoNetwork(loaded, **options)
        assert len(list(cache.rglob("step-*.blob"))) == number


def test_what_was_kept_is_whole_or_not_there(tmp_path: Path) -> None:
    file, data = tmp_path / "new" / "file", bytes(range(256))
    assert _read(file) is None
    _keep(file, data)
    assert _read(file) == data
    assert list(file.parent.iterdir()) == [file]
    whole = file.read_bytes()
    damaged = [whole[:length] for length in (0, 31, 32, 100, len(whole) - 1)]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in (0, 31, 32, 200)]
    for content in (*damaged, whole + b"\0", b"no graph"):
        file.write_bytes(content)
        assert _read(file) is None


@RUNTIMES
def test_a_damaged_cache_is_made_anew(
    make_weights: Make, frames: list[Image], cache: Path, runtime: type[GraphNetwork]
) -> None:
    """A power cut while it was written must not end in a tracker that never starts again, and a
    bit that has flipped not in one that looks elsewhere."""
    loaded = make_weights(**SHALLOW)
    expected = several_frames(runtime(loaded), frames)
    kept = {file: file.read_bytes() for file in cache.rglob("*.*")}
    assert len(kept) >= 3
    for file, whole in kept.items():
        middle = len(whole) // 2
        file.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    for ours, theirs in zip(several_frames(runtime(loaded), frames), expected, strict=True):
        np.testing.assert_array_equal(ours.unit, theirs.unit)
    assert all(_read(file) is not None for file in kept)


@RUNTIMES
def test_a_cache_that_cannot_be_written_is_no_obstacle(
    make_weights: Make,
    frames: list[Image],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    runtime: type[GraphNetwork],
) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    network = runtime(make_weights(**SHALLOW))
    network.start(crops_of(frames, 32)[:1])
    assert blocked.read_text() == "in the way"


def test_what_was_used_longest_ago_is_removed_where_there_is_too_much(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(graphs, "KEPT_BYTES", 3 * 132)
    files = [cache / folder / name for folder in ("one", "two") for name in ("a", "b")]
    for age, file in enumerate(files[:3]):
        _keep(file, bytes(100))  # and a seal of 32
        os.utime(file, (1000 + age, 1000 + age))
    assert _read(files[0]) is not None
    _keep(files[3], bytes(100))
    assert sorted(cache.glob("*/*")) == [files[0], files[2], files[3]]
    _keep(files[3], bytes(300))
    assert sorted(cache.glob("*/*")) == [files[3]]
    assert not files[0].parent.exists()
    _keep(files[0], bytes(1000))
    assert not any(cache.iterdir())


def test_what_openvino_does_not_take_is_compiled_anew(
    make_weights: Make, frames: list[Image], cache: Path
) -> None:
    """As on a CPU that calls itself the same and is another."""
    loaded = make_weights(**SHALLOW)
    expected = several_frames(OpenvinoNetwork(loaded), frames)
    for blob in cache.rglob("*.blob"):
        _keep(blob, b"whole, and nothing that OpenVINO knows")
    for ours, theirs in zip(several_frames(OpenvinoNetwork(loaded), frames), expected, strict=True):
        np.testing.assert_array_equal(ours.unit, theirs.unit)
    assert all(len(blob.read_bytes()) > 1000 for blob in cache.rglob("*.blob"))


SIGNALLED = """
import gc, signal, sys
from vil_tracker_core import weights
from vil_tracker_core.tracking.graphs import OpenvinoNetwork

loaded = weights.load(weights.find(sys.argv[1]))
networks = [OpenvinoNetwork(loaded) for _ in range(2)]
while networks:
    del networks[0]
    gc.collect()
seen = []
signal.signal(signal.SIGUSR1, lambda number, frame: seen.append(number))
signal.raise_signal(signal.SIGUSR1)
assert seen == [signal.SIGUSR1]
"""


def test_signals_are_handled_after_several_networks_were_dropped(
    make_weights: Make, tmp_path: Path
) -> None:
    """With a core for each of them, the handler's stack was one that had been freed."""
    file = tmp_path / "net.safetensors"
    save(file, make_weights(**SHALLOW))
    subprocess.run([sys.executable, "-c", SIGNALLED, file], check=True)
