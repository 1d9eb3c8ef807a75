"""The mean of weights files: of their tensors, with the origin of each, and of one shape only."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vil_tracker_core import weights
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.weights import Calibration, Weights, WeightsError
from vil_tracker_core.weights.average import average

TINY = preset("vil_tiny")


def made(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    net = ViLTracker(TINY)
    net.centre_head.score.get_buffer("0.1.num_batches_tracked").fill_(seed)
    calibration = Calibration((2.0, 2.0, 2.0, 2.0), (1.0, 1.0), 0.1, "a split")
    weights.save(path, Weights(TINY, net.state_dict(), calibration, {"seed": seed}))
    return path


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return [made(tmp_path / f"stage_{seed}.safetensors", seed) for seed in (1, 2, 3)]


def test_tensors_are_means(paths: list[Path]) -> None:
    mean = average(paths)
    stages = [weights.load(path).tensors for path in paths]
    for name, tensor in mean.tensors.items():
        if tensor.is_floating_point():
            expected = np.mean([stage[name].double().numpy() for stage in stages], axis=0)
            np.testing.assert_allclose(tensor.double().numpy(), expected, rtol=1e-3, atol=1e-7)
            assert tensor.dtype == torch.float16
    assert int(mean.tensors["centre_head.score.0.1.num_batches_tracked"]) == 3
    mean.build()


def test_weights_averaged_with_themselves_do_not_change(paths: list[Path]) -> None:
    alone, mean = weights.load(paths[0]), average([paths[0], paths[0]])
    for name, tensor in mean.tensors.items():
        assert torch.equal(tensor.float(), alone.tensors[name].half().float()), name


def test_origin_of_each_is_kept_and_no_calibration(paths: list[Path], tmp_path: Path) -> None:
    weights.save(tmp_path / "mean.safetensors", average(paths))
    kept = weights.load(tmp_path / "mean.safetensors")
    parts = kept.provenance["averaged"]
    assert [part["file"] for part in parts] == [path.name for path in paths]
    assert [part["provenance"] for part in parts] == [{"seed": 1}, {"seed": 2}, {"seed": 3}]
    assert len({part["checksum"] for part in parts}) == 3
    assert kept.calibration == Calibration()


def test_one_file_has_no_mean(paths: list[Path]) -> None:
    with pytest.raises(WeightsError, match="two weights files or more"):
        average(paths[:1])


def test_another_config_is_refused_by_name(paths: list[Path], tmp_path: Path) -> None:
    config = replace(TINY, name="other", film_hidden=4)
    other = tmp_path / "other.safetensors"
    weights.save(other, Weights(config, ViLTracker(config).state_dict()))
    with pytest.raises(WeightsError, match=r"other\.safetensors is of another config \(other\)"):
        average([*paths, other])
