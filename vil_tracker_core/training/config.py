"""The training configuration: a YAML file, validated into typed values."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from vil_tracker_core.data.readers import LAYOUTS, coco
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.mobile import TRUNK_LAYERS
from vil_tracker_core.model.presets import ModelConfig, preset

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
Steps = Annotated[int, Field(ge=0)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class DatasetConfig(_Strict):
    """A published data set."""

    layout: str = Field(description="how it lies on the disk: a key of data.readers.LAYOUTS, coco")
    root: Path
    split: str | None = Field(None, description="train, where there is one, if not given")
    weight: Positive = Field(1.0, description="its share among the data sets of its kind")

    @model_validator(mode="after")
    def _known(self) -> DatasetConfig:
        splits = {name: layout.splits for name, layout in LAYOUTS.items()} | {"coco": coco.SPLITS}
        if self.layout not in splits:
            raise ValueError(f"layout = {self.layout!r}: choose one of {', '.join(splits)}")
        known = splits[self.layout]
        if self.split is not None and self.split not in known:
            choice = f"choose one of {', '.join(known)}" if known else "it has none"
            raise ValueError(f"split = {self.split!r} of {self.layout}: {choice}")
        return self

    def wanted_split(self) -> str | None:
        """The split to train on; None where the data set has none."""
        if self.layout == "coco":
            return self.split or coco.SPLITS[0]
        return self.split or ("train" if "train" in LAYOUTS[self.layout].splits else None)


class DataConfig(_Strict):
    """Where clips come from. A weight of 0 leaves a source out.

    The folders of `videos` together count as one data set of weight 1 among the others, and so do
    those of `boxed` beside COCO.
    """

    datasets: list[DatasetConfig] = Field([], description="published data sets")
    videos: list[Path] = Field([], description="folders of sequences with truth (img/, truth file)")
    boxed: list[Path] = Field([], description="folders of JPEGs with a .csv of boxes beside each")
    stills: list[Path] = Field([], description="folders of photographs, searched recursively")
    cutouts: list[Path] = Field([], description="folders of PNGs with alpha")
    hold_out: list[str] = Field([], description="names of sequences kept for validation")

    video_weight: Annotated[float, Field(ge=0)] = 0.3
    boxed_weight: Annotated[float, Field(ge=0)] = 0.1
    patch_weight: Annotated[float, Field(ge=0)] = 0.15
    composite_weight: Annotated[float, Field(ge=0)] = 0.45
    absent: Share = Field(
        0.08, description="of the clips, to show something else from some frame on"
    )
    redrawn: Share = Field(
        0.0, description="of the clips, to draw all boxes around less or more of the target"
    )
    crossing: Share = Field(
        0.0, description="of videos and composites: another object, mostly a like one, passes"
    )
    workers: Annotated[int, Field(ge=0)] = 1


class TeacherConfig(_Strict):
    """A trained tracker whose features and answers the net learns. A weight of 0 leaves a term
    out, and with it the teacher's work for it."""

    kind: Literal["fear_xs", "nanotrack"]
    folder: Path = Field(description="where its .onnx files lie")
    block: Annotated[int, Field(ge=0)] = Field(
        description="block of the net that learns the features"
    )
    feature_weight: NotNegative = 1.0
    score_weight: NotNegative = 0.0
    box_weight: NotNegative = 0.0
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0,
        description="of the clips, for which it answers: that costs more than the clip itself",
    )

    @property
    def responds(self) -> bool:
        """Whether the teacher has to track, and not only to look."""
        return self.score_weight > 0 or self.box_weight > 0


class LossWeights(_Strict):
    """What each loss counts in the sum."""

    focal: Positive = 1.0
    giou: Positive = 2.0
    l1: Positive = 5.0
    nll: Positive = 0.05
    contrastive: NotNegative = Field(default=0.0, description="of the memory; 0 leaves it out")


class HubConfig(_Strict):
    """Where the finished weights are published."""

    repo: str = Field(pattern=r"^[\w.-]+/[\w.-]+$", description="owner/name")
    private: bool = True


class TrainConfig(_Strict):
    """One training run.

    Its time is counted in optimiser steps; `steps`, `warmup`, `difficulty_steps` and `film_from`
    may also be written as "30 epochs", of `epoch_steps` steps each.
    """

    model: str = Field(description="preset")
    scan: Literal["joint", "regional"] | None = Field(None, description="if not the preset's")
    memory: Literal["reset", "carry"] | None = Field(None, description="if not the preset's")
    init: Path | None = Field(None, description="weights to start from")
    data: DataConfig
    teacher: TeacherConfig | None = None

    epoch_steps: Count = Field(1, description="steps that are called an epoch")
    steps: Count
    batch: Count = Field(32, description="clips of a micro-batch, over all processes")
    frames: Count = Field(1, description="search frames a clip")
    templates: Literal[1, 2] = Field(
        1, description="a second is of the first search frame and serves the others"
    )
    follow: Share = Field(
        0.0, description="of the clips, to cut search crops around the boxes that the net found"
    )
    accumulate: Count = Field(1, description="micro-batches a step")
    lr: Positive = 1e-3
    trunk_lr: Positive = Field(
        1.0, description="of a mobile stem's trunk and of the matcher behind it, as a share of lr"
    )
    warmup: Steps = 300
    weight_decay: NotNegative = 0.05
    film_weight_decay: NotNegative = 0.01
    clip_norm: Positive = 1.0
    ema: Share = 0.999

    losses: LossWeights = LossWeights()
    easy_losses: LossWeights | None = Field(None, description="at difficulty 0; as `losses` if not")
    adaptive_losses: bool = Field(False, description="learn the losses' balance")
    difficulty_from: Share = Field(0.2, description="difficulty at the start")
    difficulty_steps: Steps = Field(0, description="until the difficulty is 1")
    film_from: Steps = Field(
        0, description="before this step no frame is trusted: FiLM and a carried memory are off"
    )
    freeze_trunk: Annotated[int, Field(ge=0, le=TRUNK_LAYERS)] = Field(
        0, description=f"layers of a mobile stem's trunk, from the image on; {TRUNK_LAYERS} are all"
    )
    freeze_shared_experts: bool = Field(False, description="of the TMoE blocks")

    seed: int = 0
    precision: Literal["no", "bf16"] = "no"
    compile: bool = Field(
        False, description="the blocks, by torch.compile: faster steps after a slower first one"
    )
    checkpoint_minutes: Positive = 5.0
    hub: HubConfig | None = None

    @field_validator("steps", "warmup", "difficulty_steps", "film_from", mode="before")
    @classmethod
    def _in_steps(cls, value: object, info: ValidationInfo) -> object:
        epochs = re.fullmatch(r"(\d+) epochs?", value) if isinstance(value, str) else None
        return int(epochs[1]) * int(info.data.get("epoch_steps", 1)) if epochs else value

    @model_validator(mode="after")
    def _fits_the_model(self) -> TrainConfig:
        try:
            model = self.model_config_of()
        except ValueError as error:
            raise ValueError(f"model = {self.model!r}: {error}") from None
        if model.stem != "mobile" and (self.trunk_lr, self.freeze_trunk) != (1, 0):
            raise ValueError(f"{self.model} has no trunk: leave out trunk_lr and freeze_trunk")
        if self.templates > 1 and (model.scan == "joint" or self.frames == 1):
            raise ValueError(
                "templates = 2 needs the regional scan and at least two search frames a clip"
            )
        if self.teacher and self.teacher.block >= model.depth:
            raise ValueError(
                f"teacher.block = {self.teacher.block}: {self.model} has the blocks "
                f"0 to {model.depth - 1}"
            )
        if self.follow > 0 and self.frames == 1:
            raise ValueError("follow needs at least two search frames a clip")
        if self.follow > 0 and self.teacher:
            raise ValueError("follow leaves no teacher: it would not know the crops beforehand")
        return self

    def model_config_of(self) -> ModelConfig:
        model = preset(self.model)
        return replace(model, scan=self.scan or model.scan, memory=self.memory or model.memory)


_BOUNDS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most"}


def _schema_of(key: tuple[int | str, ...]) -> dict[str, Any]:
    """The JSON schema of the value under a key, or {} where there is no such key."""
    whole: dict[str, Any] = TrainConfig.model_json_schema()

    def resolved(part: dict[str, Any]) -> dict[str, Any]:
        for option in (part, *part.get("anyOf", [])):  # `X | None` has its type in anyOf
            if "$ref" in option:
                found: dict[str, Any] = whole["$defs"][option["$ref"].rsplit("/", 1)[-1]]
                return found
        return part

    part = whole
    for name in key:
        part = resolved(part)
        part = (
            part.get("items", {})
            if isinstance(name, int)
            else part.get("properties", {}).get(name, {})
        )
    return resolved(part)


def _explain(error: ValidationError, source: str) -> str:
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            known = _schema_of(item["loc"][:-1]).get("properties", {})
            near = get_close_matches(str(item["loc"][-1]), known, n=1)
            lines.append(f"unknown key {key!r}" + (f": is {near[0]!r} meant?" if near else ""))
        elif item["type"] == "missing":
            lines.append(f"{key} is missing")
        elif item["type"] == "value_error":  # of a whole section, its sentence names the key
            said = item["msg"].removeprefix("Value error, ")
            lines.append(f"{key}.{said}" if key else said)
        else:
            schema = _schema_of(item["loc"])
            bounds = [f"{word} {schema[b]:g}" for b, word in _BOUNDS.items() if b in schema]
            allowed = f" (allowed: {', '.join(bounds)})" if bounds else ""
            lines.append(f"{key} = {item['input']!r}: {item['msg']}{allowed}")
    return "; ".join(f"{source}: {line}" for line in lines)


def _change(values: dict[str, Any], change: str) -> None:
    """Sets one value by "section.key=value", the value in YAML."""
    key, equals, text = change.partition("=")
    *sections, last = key.split(".")
    if not (equals and last and all(sections)):
        raise DataError(f"--set {change}: write KEY=VALUE, or SECTION.KEY=VALUE")
    for depth, name in enumerate(sections, start=1):
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise DataError(f"--set {change}: {'.'.join(sections[:depth])} is no section")
    try:
        values[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise DataError(f"--set {change}: no valid YAML: {' '.join(str(error).split())}") from None


def load_config(path: Path, changes: Sequence[str] = ()) -> TrainConfig:
    """The config of a YAML file; raises DataError with one sentence naming file, key and value.

    Args:
        path: the file.
        changes: "key=value" or "section.key=value" each, in place of what the file has.
    """
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
    for change in changes:
        _change(values, change)
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        source = " with --set ".join([str(path), *changes])
        raise DataError(_explain(error, source)) from None
