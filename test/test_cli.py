"""The command `vil-tracker`, as a process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import read_folder
from vil_tracker_core.model.init_from import to_published
from vil_tracker_core.model.presets import PRESETS
from vil_tracker_core.model.tracker import ViLTracker

SMOKE = Path(__file__).parents[1] / "config" / "train" / "smoke.yaml"


def run(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    code = "from vil_tracker_core.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        cwd=cwd,
        timeout=120,
    )


def test_help_lists_the_commands() -> None:
    done = run("--help")
    assert done.returncode == 0
    for command in ("info", "init-from", "train", "annotate", "flight", "demo", "bag"):
        assert command in done.stdout


def test_info_of_the_reference() -> None:
    done = run("info", "vil_s", "--json")
    values = json.loads(done.stdout)
    assert values["parameters"] == pytest.approx(36.93e6, rel=0.01)
    assert values["parts"]["tmoe_block"] == pytest.approx(6.23e6, rel=0.01)
    assert values["config"]["dim"] == 384
    assert values["flops"]["frame"]["total"] == 2 * values["macs"]["frame"]["total"] > 20e9
    assert 0 < values["film_adds"]["flops_share"] < 0.05


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """A weights file of vil_tiny with everything that `info` shows."""
    path = tmp_path / "tiny.safetensors"
    torch.manual_seed(0)
    made = weights.Weights(
        PRESETS["vil_tiny"],
        ViLTracker(PRESETS["vil_tiny"]).state_dict(),
        weights.Calibration((1.5, 1.0, 2.0, 1.0), (0.5, 1.0), 0.25, "a split"),
        {"run": "a run", "data": {"videos": 3}},
    )
    weights.save(path, made)
    return path


def test_info_of_a_weights_file(tiny: Path) -> None:
    values = json.loads(run("info", str(tiny), "--json").stdout)
    assert values["provenance"] == {"run": "a run", "data": {"videos": 3}}
    assert values["calibration"] == {
        "spread": [1.5, 1.0, 2.0, 1.0],
        "settling": [0.5, 1.0],
        "drift": 0.25,
        "fitted_on": "a split",
    }
    assert values["config"] == json.loads(json.dumps(PRESETS["vil_tiny"].to_dict()))
    parts = values["parts"]
    assert (
        parts["backbone"] + parts["film"] + parts["centre_head"] + parts["uncertainty_head"]
        == (values["parameters"])
    )

    shown = run("info", str(tiny)).stdout
    for part in ("mlstm_block", "tmoe_block", "embedding", "backbone", "film", "whole"):
        assert f"{parts[part]:,}" in shown
    lines = shown.splitlines()
    for heading, unit in (("all, GMACs", "macs"), ("all, GFLOPs", "flops")):
        row = next(line for line in lines if heading in line)
        totals = [values[unit][name]["total"] for name in ("init", "frame", "frame_uncached")]
        assert [f"{total / 1e9:.3f}" for total in totals] == row.replace("│", " ").split()[2:]
    assert f"FiLM (token) adds {parts['film']:,} parameters" in shown
    assert "budget: 0.1 of 50 M parameters" in shown
    said = yaml.safe_load(shown[shown.index("\nconfig:") :])
    assert {key: values[key] for key in said} == said
    assert list(said) == ["config", "calibration", "provenance"]


def test_info_of_a_preset_prints_its_config() -> None:
    shown = run("info", "vil_tiny").stdout
    assert "name: vil_tiny" in shown
    assert "calibration" not in shown


def test_init_from_makes_weights_to_train_from(tmp_path: Path, tiny: Path) -> None:
    published = to_published(weights.load(tiny).tensors, PRESETS["vil_tiny"])
    checkpoint, out = tmp_path / "vil.safetensors", tmp_path / "start.safetensors"
    save_file({**published, "head.weight": torch.ones(2, 32)}, checkpoint)
    arguments = ("init-from", str(checkpoint), str(out), "--preset", "vil_tiny")
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "blocks.N.layer.proj_up.weight" in done.stdout
    assert f"{len(published)} tensors taken, 1 not taken" in done.stdout
    made = weights.load(out)
    assert made.config == PRESETS["vil_tiny"]
    assert made.provenance["init_from"] == "vil.safetensors"
    assert made.provenance["not_taken"] == ["head.weight"]
    found = to_published(made.build().state_dict(), made.config)
    assert all(torch.equal(found[name], published[name]) for name in published)

    again = run(*arguments)
    assert again.returncode == 2
    assert "start.safetensors exists already" in again.stderr


def trainings(provenance: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that weights come from: their own, or those of all that they are the mean of."""
    if "averaged" not in provenance:
        return [provenance]
    return [run for part in provenance["averaged"] for run in trainings(part["provenance"])]


def test_info_of_the_shipped_weights_tells_their_origin() -> None:
    done = run("info", "vil_nano", "--json")
    values = json.loads(done.stdout)
    assert values["parameters"] < 4e6
    runs = trainings(values["provenance"])
    assert runs
    for stage in runs:
        assert stage["config"]["model"] == "vil_nano"
        assert stage["step"] > 0
    assert values["calibration"]["fitted_on"] != "nothing"


def test_flight_to_bag_and_back(tmp_path: Path) -> None:
    assert run("flight", str(tmp_path / "f"), "--frames", "3", "--fps", "10").returncode == 0
    made = run("bag", "make", str(tmp_path / "f"), str(tmp_path / "bag"), "--quality", "80")
    assert made.returncode == 0, made.stderr
    shown = run("bag", "info", str(tmp_path / "bag"))
    assert "/ground_truth" in shown.stdout
    sequence = read_folder(tmp_path / "f")
    assert len(sequence) == 3
    assert sequence.visible.all()
    assert sequence.stamps[1] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("info", "nothing"), "'nothing' is neither a weights file nor a preset: vil_s"),
        (("init-from", "nothing", "out"), "nothing does not exist"),
        (("init-from", "nothing", "out", "--preset", "vil_xl"), "no preset 'vil_xl'"),
        (("train", "nothing.yaml"), "nothing.yaml does not exist"),
        (("train", str(SMOKE), "--set", "batch=8", "--set", "stepz=2"), "unknown key 'stepz'"),
        (
            ("annotate", ".", "out", "--teacher", "nowhere"),
            "nowhere/fear_xs_template.onnx is missing",
        ),
        (
            ("annotate", ".", "out", "--teacher", ".", "--kind", "owl"),
            "choose one of fear_xs, nano",
        ),
        (("bag", "info", "nothing"), "nothing"),
        (("bag", "make", "nothing", "out"), "nothing has no folder img/"),
    ],
)
def test_faults_end_in_one_sentence(arguments: tuple[str, ...], words: str, tmp_path: Path) -> None:
    done = run(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().count("\n") == 0


def test_average_makes_uncalibrated_weights(tmp_path: Path, tiny: Path) -> None:
    out = tmp_path / "mean.safetensors"
    arguments = ("average", str(tiny), str(tiny), "--out", str(out))
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    assert "of 2; not calibrated" in done.stdout
    made = weights.load(out)
    assert made.calibration == weights.Calibration()
    assert [part["file"] for part in made.provenance["averaged"]] == ["tiny.safetensors"] * 2

    again = run(*arguments)
    assert again.returncode == 2
    assert "mean.safetensors exists already" in again.stderr
