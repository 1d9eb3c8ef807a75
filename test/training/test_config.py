"""The training configuration: what is wrong is said in one sentence that names file, key, value."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from vil_tracker_core.data.sequence import DataError
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
    assert config.model_config_of().name == "vil_tiny"


def test_config_cannot_be_changed(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(GOOD)
    with pytest.raises(ValidationError):
        load_config(path).steps = 3


@pytest.mark.parametrize(
    ("line", "parts"),
    [
        ("stepz: 5", ("unknown key", "'stepz'")),
        ("losses: {gious: 2}", ("unknown key", "'losses.gious'")),
        ("teacher: {path: a.onnx, block: 1}", ("teacher.tensor is missing",)),
        ("batch: 0", ("batch = 0", "greater than or equal to 1")),
        ("batch: many", ("batch = 'many'", "integer")),
        ("lr: -1", ("lr = -1", "greater than 0")),
        ("lr: .nan", ("lr = nan",)),
        ("lr: .inf", ("lr = inf",)),
        ("ema: 1.5", ("ema = 1.5",)),
        ("precision: fp8", ("precision = 'fp8'",)),
        ("model: vil_huge", ("model", "'vil_huge'", "vil_nano")),
        ("1: 2", ("1",)),
        ("teacher: {path: a.onnx, tensor: t, block: 99}", ("teacher.block", "99")),
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
