"""The counts against ones worked by hand, for a net small enough for that."""

from __future__ import annotations

from dataclasses import replace

import pytest

from vil_tracker_core.model.cost import Cost, Macs, cost
from vil_tracker_core.model.presets import PRESETS, ModelConfig

# 4 template tokens and 16 search tokens of dim 16, two blocks, one modulated layer
BY_HAND = ModelConfig(
    name="by_hand",
    template_size=32,
    search_size=64,
    dim=16,
    depth=2,
    tmoe_blocks=0,
    heads=2,
    film_every=2,
    film_hidden=4,
    head_channels=8,
    uncertainty_channels=8,
)
PIXELS = 16 * 16 * 3  # of a patch


def test_the_stem_by_hand() -> None:
    found = cost(BY_HAND)
    assert found.init.stem == 4 * PIXELS * 16
    assert found.frame.stem == 16 * PIXELS * 16
    assert found.frame_uncached.stem == 20 * PIXELS * 16


def test_the_conv_stem_by_hand() -> None:
    found = cost(replace(BY_HAND, stem="conv", stem_channels=(4, 4, 8)))
    cells = {"search": (32**2, 16**2, 8**2, 4**2), "template": (16**2, 8**2, 4**2, 2**2)}
    taps = (9 * 3 * 4, 9 * 4 * 4, 9 * 4 * 8, 9 * 8 * 16)
    by_hand = {
        name: sum(n * t for n, t in zip(grid, taps, strict=True)) for name, grid in cells.items()
    }
    assert (found.init.stem, found.frame.stem) == (by_hand["template"], by_hand["search"])


def test_the_matcher_by_hand() -> None:
    found = cost(replace(BY_HAND, match_width=6))
    neck, wide = 16 * 6, 6 + 4
    comparison = 9 * 6 + 6 * 6 + 4 * 6 + 9 * wide + wide * 6
    assert found.init.stem == 4 * (PIXELS * 16 + neck)
    assert found.frame.stem == 16 * (PIXELS * 16 + neck + 2 * comparison + 12 * 16)
    assert found.frame.film == cost(BY_HAND).frame.film


def test_the_heads_by_hand() -> None:
    found = cost(BY_HAND)
    tower = 9 * 16 * 8 + 9 * 8 * 4
    uncertainty = 9 * 16 * 8  # the last layers are element-wise sums of products: not counted
    assert found.frame.heads == 16 * (3 * tower + uncertainty)
    assert found.init.heads == 0


def test_film_by_hand() -> None:
    calibrator, projection = 16 * 4 + 4, 16 * 16
    token = cost(BY_HAND)
    correction, continuation = 4 * 4 + 4 * 64, 5 * 4 + 4 * 64
    each = 2 * (16 * 4 + 4 * 16) + calibrator + projection + continuation
    assert token.frame.film == 16 * each + correction
    pooled = cost(replace(BY_HAND, film="pooled"))
    once = 16 * 4 + 4 * (2 * 16) + calibrator + correction + continuation
    assert pooled.frame.film == once + 16 * projection
    assert token.init.film == pooled.init.film == 0


@pytest.mark.parametrize("film", ["token", "pooled"])
@pytest.mark.parametrize("scan", ["joint", "regional"])
def test_film_is_what_a_net_without_it_saves(film: str, scan: str) -> None:
    config = replace(BY_HAND, film=film, scan=scan)
    found, without = cost(config), cost(replace(config, film="off"))
    assert found.frame.total - without.frame.total == found.frame.film > 0
    assert found.parameters.whole - without.parameters.whole == found.parameters.film > 0
    adds = found.to_dict()["film_adds"]
    assert adds["flops_share"] == pytest.approx(found.frame.total / without.frame.total - 1)
    assert adds["parameters_share"] == pytest.approx(
        found.parameters.whole / without.parameters.whole - 1
    )
    assert without.to_dict()["film_adds"]["flops"] == 0


def test_twice_the_blocks_is_twice_their_work() -> None:
    shallow, deep = (cost(replace(BY_HAND, film="off", depth=depth)) for depth in (2, 4))
    assert deep.frame.blocks == 2 * shallow.frame.blocks
    assert replace(deep.frame, blocks=0) == replace(shallow.frame, blocks=0)


def test_only_the_regional_scan_saves_the_templates_blocks() -> None:
    joint, regional = (cost(replace(BY_HAND, scan=scan)) for scan in ("joint", "regional"))
    assert joint.init.blocks == 0
    assert joint.frame.blocks == joint.frame_uncached.blocks
    assert regional.init.blocks > 0
    assert regional.frame.blocks < joint.frame.blocks
    assert regional.frame_uncached.total == regional.init.total + regional.frame.total


@pytest.fixture(scope="module")
def reference() -> Cost:
    return cost(PRESETS["vil_s"])


def test_the_reference_by_formula(reference: Cost) -> None:
    """The blocks of vil_s for 320 tokens, between their projections alone and these with the
    mLSTM over all of them at once and its two block-diagonal maps as matrices 96 wide."""
    dim, inner, heads, tokens = 384, 768, 4, 64 + 256
    head = inner // heads
    projections = dim * 2 * inner + inner * dim
    gates = 2 * heads * 3 * inner
    scores = 2 * heads * tokens * head  # q k^T, and its product with v
    state = heads * head * head  # written to C
    maps = 2 * inner * 96
    tmoe = 3 * dim * 4 * dim + 4 * (3 * dim * 2 * dim + dim)
    least = tokens * (24 * projections + 2 * tmoe)
    most = least + tokens * 24 * (gates + scores + state + maps)
    assert least < reference.frame.blocks < 1.02 * most
    assert reference.frame.stem == 256 * PIXELS * dim
    continuation, correction = (96 * (given + 10 * dim) for given in (5, 4))
    each = 8 * (2 * dim * 96) + dim * 96 + 96 + dim * dim + continuation
    assert reference.frame.film == 256 * each + correction


def test_parts_add_up(reference: Cost) -> None:
    parts = reference.parameters
    assert parts.embedding + 22 * parts.mlstm_block + 2 * parts.tmoe_block + 384 == parts.backbone
    assert parts.whole == (parts.backbone + parts.film + parts.centre_head + parts.uncertainty_head)
    values = reference.to_dict()
    assert values["parameters"] == values["parts"]["whole"] == pytest.approx(36.93e6, rel=0.01)
    for name in ("init", "frame", "frame_uncached"):
        macs, flops = values["macs"][name], values["flops"][name]
        assert {part: 2 * count for part, count in macs.items()} == flops
        assert macs["total"] == sum(count for part, count in macs.items() if part != "total")
    assert all(item["met"] for item in values["budget"].values())


def test_a_net_beyond_the_budget_says_so() -> None:
    wide = cost(ModelConfig(name="wide", dim=4096, depth=1, tmoe_blocks=0, film="off"))
    budget = wide.to_dict()["budget"]
    assert not budget["parameters"]["met"]
    assert not budget["macs"]["met"]
    assert budget["bytes_fp16"]["met"]


def test_work_adds_part_by_part() -> None:
    assert Macs(1, 2, 3, 4).plus(Macs(10, 20, 30, 40)) == Macs(11, 22, 33, 44)
