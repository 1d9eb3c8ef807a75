"""The config: what it derives, what it refuses, and its way through JSON."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError, replace
from typing import Any

import pytest

from vil_tracker_core.model.presets import PRESETS, ModelConfig, preset

each_preset = pytest.mark.parametrize("name", PRESETS)


@each_preset
def test_a_config_survives_json(name: str) -> None:
    config = preset(name)
    assert config.name == name
    back = ModelConfig.from_dict(json.loads(json.dumps(config.to_dict())))
    assert back == config
    assert hash(back) == hash(config)


def test_a_partial_dict_takes_the_defaults() -> None:
    assert ModelConfig.from_dict({"name": "x", "dim": 64}) == ModelConfig(name="x", dim=64)


def test_unknown_keys_are_named() -> None:
    values = {**preset("vil_tiny").to_dict(), "widht": 3, "colour": 1}
    with pytest.raises(ValueError, match="unknown model config keys: colour, widht"):
        ModelConfig.from_dict(values)


def test_an_unknown_preset_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match="no preset 'vil_xl'; there are vil_s, vil_nano, vil_tiny"):
        preset("vil_xl")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"scan": "zigzag"}, "scan: 'zigzag' is not one of joint, regional"),
        ({"memory": "keep"}, "memory: 'keep' is not one of reset, carry"),
        ({"film": "on"}, "film: 'on' is not one of off, token, pooled"),
        ({"film_init": "zero"}, "film_init: 'zero' is not one of identity, small_random"),
        ({"stem": "vit"}, "stem: 'vit' is not one of patch, conv"),
        ({"template_size": 130}, "multiples of patch"),
        ({"search_size": 250}, "multiples of patch"),
        ({"heads": 7}, "multiple of heads"),
        ({"qkv_block": 5}, "multiple of heads"),
        ({"stem": "conv"}, "three stem_channels"),
        ({"stem": "conv", "stem_channels": (8, 8)}, "three stem_channels"),
        ({"memory": "carry"}, "needs scan 'regional'"),
    ],
)
def test_a_bad_choice_is_refused_with_a_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        replace(preset("vil_s"), **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"patch": 0},
        {"dim": 0},
        {"depth": 0},
        {"heads": 0},
        {"heads": -4},
        {"chunk": 0},
        {"film_every": 0},
        {"conv_kernel": 0},
        {"search_size": 0},
        {"tmoe_blocks": -1},
        {"dim": "384"},
        {"dim": 384.0},
        {"film_keep": 1.5},
        {"film_keep": float("nan")},
        {"memory_keep": 1.0},
        {"search_factor": 0.0},
        {"drop_path": 1.0},
    ],
    ids=str,
)
def test_a_bad_size_is_refused_by_its_name(changes: dict[str, Any]) -> None:
    """A weights file brings its own config: no value may end in a division by zero."""
    with pytest.raises(ValueError, match=next(iter(changes))):
        ModelConfig.from_dict({**preset("vil_s").to_dict(), **changes})


def test_the_conv_stem_needs_patches_of_its_stride() -> None:
    with pytest.raises(ValueError, match="patch"):
        replace(preset("vil_nano"), patch=8)


def test_stem_channels_that_are_no_list_are_refused() -> None:
    with pytest.raises(ValueError, match="stem_channels"):
        ModelConfig.from_dict({"name": "x", "stem_channels": 5})


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        preset("vil_s").dim = 1  # type: ignore[misc]


def test_derived_sizes_of_the_reference() -> None:
    """What the design states of tokens and layers."""
    config = preset("vil_s")
    assert (config.template_grid**2, config.search_grid**2) == (64, 256)
    assert config.inner == 768
    assert config.film_layers == 4
    assert replace(config, film="off").film_layers == 0
