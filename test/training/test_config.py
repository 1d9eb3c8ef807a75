"""The training configuration: what is wrong is said in one sentence that names file, key, value."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import preset
from vil_tracker_core.training.config import load_config

SHIPPED = sorted((Path(__file__).parents[2] / "config" / "train").glob("*.yaml"))
GOOD = "model: vil_tiny\ndata: {stills: [photographs]}\nsteps: 10\n"


def refused(tmp_path: Path, text: str | bytes, *parts: object) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(DataError) as error:
        load_config(path)
    message = str(error.value)
    assert "\n" not in message
    assert str(path) in message
    message = message.replace(str(path), "")  # whose own words are no answer
    for part in parts:
        assert str(part) in message, f"{part!r} is not named in {message!r}"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.model_config_of().name == config.model
    if config.teacher:
        assert config.teacher.block < config.model_config_of().depth


def test_there_are_shipped_configs() -> None:
    assert SHIPPED


def test_values_and_defaults(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "lr: 5e-4\nprecision: bf16\n")  # YAML reads 5e-4 as a text
    config = load_config(path)
    assert (config.steps, config.batch, config.lr) == (10, 32, 5e-4)
    assert config.precision == "bf16"
    assert config.data.stills == [Path("photographs")]
    assert config.teacher is None
    assert config.hub is None
    assert config.model_config_of().name == "vil_tiny"


def test_the_presets_memory_may_be_another(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "memory: carry\n")
    assert load_config(path).model_config_of() == replace(preset("vil_tiny"), memory="carry")
    path.write_text(GOOD.replace("vil_tiny", "vil_s") + "memory: carry\n")
    with pytest.raises(DataError, match="needs scan 'regional'"):
        load_config(path)


def test_the_presets_scan_may_be_another(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "scan: joint\n")
    assert load_config(path).model_config_of() == replace(preset("vil_tiny"), scan="joint")
    path.write_text(GOOD + "scan: joint\nmemory: carry\n")
    with pytest.raises(DataError, match="needs scan 'regional'"):
        load_config(path)


def test_values_may_be_set_in_place_of_the_files(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD + "teacher: {kind: fear_xs, folder: a, block: 1}\n")
    changes = ["steps=7", "lr=5e-4", "data.stills=[a, b]", "losses.l1=2", "losses.giou=3"]
    config = load_config(path, changes)
    assert (config.steps, config.lr) == (7, 5e-4)
    assert config.data.stills == [Path("a"), Path("b")]
    assert (config.losses.l1, config.losses.giou) == (2, 3), "a section that the file lacks"
    assert config.teacher == load_config(path).teacher
    assert load_config(path, ["teacher.block=2"]).teacher != config.teacher
    assert load_config(path, ["teacher=null"]).teacher is None
    assert load_config(path, ["steps=7", "steps=8"]).steps == 8


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("steps", ("--set steps", "KEY=VALUE")),
        ("=5", ("--set =5", "KEY=VALUE")),
        ("data.=5", ("--set data.=5", "KEY=VALUE")),
        ("steps.more=5", ("--set steps.more=5", "steps is no section")),
        ("data.stills.0.a=x", ("data.stills is no section",)),
        ("steps=[1", ("--set steps=[1", "no valid YAML")),
        ("stepz=5", ("run.yaml", "--set stepz=5", "unknown key 'stepz'", "'steps' meant?")),
        ("batch=0", ("run.yaml", "--set batch=0", "batch = 0", "at least 1")),
    ],
)
def test_bad_set_is_named(tmp_path: Path, change: str, parts: tuple[str, ...]) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    with pytest.raises(DataError) as error:
        load_config(path, [change])
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_time_in_epochs(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    text = GOOD.replace("steps: 10", "steps: 30 epochs")
    path.write_text(text + "epoch_steps: 200\nwarmup: 1 epoch\nfilm_from: 7\n")
    config = load_config(path)
    assert (config.steps, config.warmup, config.film_from) == (6000, 200, 7)
    path.write_text(text)
    assert load_config(path).steps == 30, "an epoch is a step where nothing else is said"


def test_what_a_run_records_is_a_config_again(tmp_path: Path) -> None:
    path, again = tmp_path / "run.yaml", tmp_path / "again.yaml"
    path.write_text(GOOD.replace("10", "3 epochs") + "epoch_steps: 20\neasy_losses: {l1: 9}\n")
    config = load_config(path)
    again.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert load_config(again) == config


def test_config_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    with pytest.raises(ValidationError):
        load_config(path).steps = 3


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("stepz: 5", ("unknown key", "'stepz'", "is 'steps' meant?")),
        ("losses: {gious: 2}", ("unknown key", "'losses.gious'", "'giou'")),
        ("teacher: {kind: fear_xs, block: 1}", ("teacher.folder is missing",)),
        ("teacher: {kind: siamese, folder: a, block: 1}", ("teacher.kind = 'siamese'", "fear_xs")),
        ("teacher: {kind: fear_xs, folder: a, block: -1}", ("teacher.block = -1", "at least 0")),
        ("data: {absent: 1.2}", ("data.absent = 1.2", "at least 0, at most 1")),
        ("losses: {l1: 0}", ("losses.l1 = 0", "above 0")),
        ("easy_losses: {l1: -3}", ("easy_losses.l1 = -3", "above 0")),
        ("warmup: 3 weeks", ("warmup = '3 weeks'", "integer", "at least 0")),
        ("hub: {repo: mine}", ("hub.repo = 'mine'",)),
        ("batch: 0", ("batch = 0", "at least 1")),
        ("batch: many", ("batch = 'many'", "integer")),
        ("lr: -1", ("lr = -1", "above 0")),
        ("lr: .nan", ("lr = nan",)),
        ("lr: .inf", ("lr = inf",)),
        ("ema: 1.5", ("ema = 1.5", "at least 0, at most 1")),
        ("precision: fp8", ("precision = 'fp8'", "'no' or 'bf16'")),
        ("model: vil_huge", ("model", "'vil_huge'", "vil_nano")),
        ("1: 2", ("1",)),
        ("teacher: {kind: fear_xs, folder: a, block: 4}", ("teacher.block = 4", "0 to 3")),
        ("templates: 2", ("templates = 2", "two search frames")),
        ("follow: 0.5", ("follow needs at least two search frames",)),
        (
            "frames: 2\nfollow: 0.5\nteacher: {kind: fear_xs, folder: a, block: 1}",
            ("follow leaves no teacher",),
        ),
        ("trunk_lr: 0.1", ("vil_tiny has no trunk", "trunk_lr")),
        ("freeze_trunk: 2", ("vil_tiny has no trunk", "freeze_trunk")),
        ("freeze_trunk: 19", ("freeze_trunk = 19", "at most 18")),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: str, parts: tuple[str, ...]) -> None:
    refused(tmp_path, GOOD + line + "\n", *parts)


def test_missing_keys_are_named_together(tmp_path: Path) -> None:
    refused(tmp_path, "model: vil_tiny\n", "data is missing", "steps is missing")


@pytest.mark.parametrize("text", ["model: [vil_tiny\nsteps: 3\n", "a: b: c\n", "\tmodel: x\n"])
def test_not_yaml(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text, "not valid YAML", "line")


@pytest.mark.parametrize("text", ["", "- 1\n- 2\n", "just a text\n"])
def test_not_a_mapping(tmp_path: Path, text: str) -> None:
    refused(tmp_path, text, "keys and values")


def test_not_a_text(tmp_path: Path) -> None:
    refused(tmp_path, b"\xff\xfe\x80")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.yaml does not exist"):
        load_config(tmp_path / "gone.yaml")
