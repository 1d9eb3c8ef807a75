"""The training configuration: a YAML file, validated into typed values."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import ModelConfig, preset

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DataConfig(_Strict):
    """Where clips come from. A weight of 0 leaves a source out."""

    videos: list[Path] = Field([], description="folders of sequences with truth (img/, truth file)")
    boxed: list[Path] = Field([], description="folders of JPEGs with a .csv of boxes beside each")
    stills: list[Path] = Field([], description="folders of photographs, searched recursively")
    cutouts: list[Path] = Field([], description="folders of PNGs with alpha")
    hold_out: list[str] = Field([], description="names of sequences kept for validation")

    video_weight: Annotated[float, Field(ge=0)] = 0.3
    boxed_weight: Annotated[float, Field(ge=0)] = 0.1
    patch_weight: Annotated[float, Field(ge=0)] = 0.15
    composite_weight: Annotated[float, Field(ge=0)] = 0.45
    absent: Share = 0.08
    workers: Annotated[int, Field(ge=0)] = 1


class TeacherConfig(_Strict):
    """A network whose dense features the backbone learns."""

    path: Path
    tensor: str = Field(description="the tensor's name, (1, channels, g, g)")
    block: Annotated[int, Field(ge=0)] = Field(description="block of the student that learns it")
    weight: Positive = 1.0


class LossWeights(_Strict):
    focal: Positive = 1.0
    giou: Positive = 2.0
    l1: Positive = 5.0
    nll: Positive = 0.05


class TrainConfig(_Strict):
    """One training run."""

    model: str = Field(description="preset")
    init: Path | None = Field(None, description="weights to start from")
    data: DataConfig
    teacher: TeacherConfig | None = None
    losses: LossWeights = LossWeights()

    steps: Count
    batch: Count = 32
    frames: Count = Field(1, description="search frames a clip")
    accumulate: Count = 1
    lr: Positive = 1e-3
    warmup: Annotated[int, Field(ge=0)] = 300
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    film_weight_decay: Annotated[float, Field(ge=0)] = 0.01
    clip_norm: Positive = 1.0
    ema: Share = 0.999
    difficulty_from: Share = Field(0.2, description="clips' difficulty at the start")
    difficulty_steps: Annotated[int, Field(ge=0)] = Field(0, description="steps until it is 1")
    seed: int = 0
    precision: Annotated[str, Field(pattern="^(no|bf16)$")] = "no"
    compile: bool = False
    checkpoint_minutes: Positive = 5.0

    def model_config_of(self) -> ModelConfig:
        return preset(self.model)


def _explain(error: ValidationError, path: Path) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            lines.append(f"{path}: unknown key {key!r}")
        elif item["type"] == "missing":
            lines.append(f"{path}: {key} is missing")
        else:
            lines.append(f"{path}: {key} = {item['input']!r}: {item['msg']}")
    return "; ".join(lines)


def load_config(path: Path) -> TrainConfig:
    """The config of a YAML file; raises DataError with one sentence naming file, key and value."""
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path} does not exist")
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not a UTF-8 text: {error.reason}") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise DataError(f"{path} must hold keys and values")
    try:
        config = TrainConfig.model_validate(values)
    except ValidationError as error:
        raise DataError(_explain(error, path)) from None
    try:
        depth = preset(config.model).depth
    except ValueError as error:
        raise DataError(f"{path}: model = {config.model!r}: {error}") from None
    if config.teacher and config.teacher.block >= depth:
        raise DataError(
            f"{path}: teacher.block = {config.teacher.block}: {config.model} has the blocks "
            f"0 to {depth - 1}"
        )
    return config
