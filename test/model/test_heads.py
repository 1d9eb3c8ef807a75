"""Heads and the maps between a box and the cell that holds it."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vil_tracker_core.model.heads import (
    LOG_VAR_CENTRE,
    LOG_VAR_RANGE,
    SCORE_FLOOR,
    CentreHead,
    Prediction,
    UncertaintyHead,
    at_cells,
    decode,
    encode,
    hann_window,
    tower_at,
)
from vil_tracker_core.model.presets import ModelConfig

unit_boxes = st.lists(
    st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0, 1)),
    min_size=1,
    max_size=4,
)


def prediction_of(unit: Tensor, grid: int) -> Prediction:
    """Maps that are noise but for each box's own cell."""
    batch = len(unit)
    generator = torch.Generator().manual_seed(0)
    score, offset, size, log_var = (
        torch.rand(batch, *shape, generator=generator, dtype=torch.float64)
        for shape in ((grid, grid), (2, grid, grid), (2, grid, grid), (4, grid, grid))
    )
    cells, inside = encode(unit, grid)
    for n, cell in enumerate(cells.tolist()):
        row, column = divmod(cell, grid)
        score[n, row, column] = 2.0
        offset[n, :, row, column] = inside[n]
        size[n, :, row, column] = unit[n, 2:]
        log_var[n, :, row, column] = -torch.arange(1.0, 5.0).double()
    return Prediction(score, offset, size, log_var)


@given(boxes=unit_boxes, grid=st.integers(1, 16))
def test_decode_inverts_encode(boxes: list[tuple[float, ...]], grid: int) -> None:
    unit = torch.tensor(boxes, dtype=torch.float64)
    found = decode(prediction_of(unit, grid))
    torch.testing.assert_close(found.unit, unit, rtol=0, atol=1e-6)
    assert found.score.eq(2.0).all()
    assert found.log_var.eq(-torch.arange(1.0, 5.0).double()).all()


@given(boxes=unit_boxes, grid=st.integers(1, 16))
def test_encode_names_the_cell_that_holds_the_centre(
    boxes: list[tuple[float, ...]], grid: int
) -> None:
    cells, offset = encode(torch.tensor(boxes, dtype=torch.float64), grid)
    assert 0 <= int(cells.min()) <= int(cells.max()) < grid * grid
    assert 0 <= float(offset.min()) <= float(offset.max()) <= 1
    for (cx, cy, _, _), cell in zip(boxes, cells.tolist(), strict=True):
        row, column = divmod(cell, grid)
        assert column == min(math.floor(cx * grid), grid - 1)
        assert row == min(math.floor(cy * grid), grid - 1)


@given(cx=st.floats(-3, 4), cy=st.floats(-3, 4))
def test_a_centre_outside_is_put_into_the_nearest_cell(cx: float, cy: float) -> None:
    unit = torch.tensor([[cx, cy, 0.5, 0.5]], dtype=torch.float64)
    found = decode(prediction_of(unit, 8)).unit[0]
    wanted = unit[0].clone()
    wanted[:2] = wanted[:2].clamp(0, 1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


def test_the_window_weighs_the_choice_and_not_the_score() -> None:
    grid = 8
    maps = prediction_of(torch.tensor([[0.55, 0.55, 0.3, 0.3]]).double(), grid)
    maps.score.fill_(0.1)
    maps.score[0, 4, 4], maps.score[0, 0, 0] = 0.7, 0.8
    assert decode(maps).score == 0.8
    chosen = decode(maps, hann_window(grid))
    assert chosen.score == 0.7
    torch.testing.assert_close(chosen.unit, torch.tensor([[0.55, 0.55, 0.3, 0.3]]).double())


@pytest.mark.parametrize("grid", [1, 4, 7, 16])
def test_hann_window(grid: int) -> None:
    window = hann_window(grid)
    at = torch.arange(1, grid + 1, dtype=torch.float64)
    line = torch.sin(math.pi * at / (grid + 1)) ** 2
    torch.testing.assert_close(window, torch.outer(line, line).float())
    assert window.min() > 0
    assert window.max() <= 1
    assert window.argmax() in (grid * grid // 2, (grid // 2 - 1) * (grid + 1), grid * grid // 2 - 1)
    assert window.equal(window.T)
    torch.testing.assert_close(window, window.flip(0))


def test_at_cells_reads_rows_first() -> None:
    maps = torch.arange(2 * 3 * 4 * 4).reshape(2, 3, 4, 4)
    cells = torch.tensor([7, 12])
    assert at_cells(maps, cells).equal(torch.stack([maps[0, :, 1, 3], maps[1, :, 3, 0]]))


def extreme_features(config: ModelConfig) -> Tensor:
    torch.manual_seed(0)
    return 1e6 * torch.randn(2, config.dim, 4, 4)


def test_variance_is_bounded(config: ModelConfig) -> None:
    head = UncertaintyHead(config).eval()
    for features in (extreme_features(config), torch.zeros(2, config.dim, 4, 4)):
        log_var = head(features)
        assert log_var.shape == (2, 4, 4, 4)
        assert log_var.min() >= LOG_VAR_CENTRE - LOG_VAR_RANGE
        assert log_var.max() <= LOG_VAR_CENTRE + LOG_VAR_RANGE
    assert head(extreme_features(config)).max() > LOG_VAR_CENTRE + 0.99 * LOG_VAR_RANGE


@pytest.mark.parametrize(("bias", "wanted"), [(-1e3, SCORE_FLOOR), (1e3, 1 - SCORE_FLOOR)])
def test_scores_are_clamped_so_that_their_logarithms_are_finite(
    config: ModelConfig, bias: float, wanted: float
) -> None:
    head = CentreHead(config).eval()
    with torch.no_grad():
        head.score[-1].bias.fill_(bias)
        score, _, _ = head(torch.zeros(1, config.dim, 4, 4))
    assert score.min() == score.max() == pytest.approx(wanted)
    assert torch.isfinite(torch.log(score)).all()
    assert torch.isfinite(torch.log1p(-score)).all()


def test_any_features_give_finite_offsets_and_sizes_within_the_crop(config: ModelConfig) -> None:
    with torch.no_grad():
        _, offset, size = CentreHead(config).eval()(extreme_features(config))
    assert torch.isfinite(offset).all()
    assert 0 <= size.min() <= size.max() <= 1


def test_before_training_the_score_is_low_and_the_centre_in_the_middle_of_its_cell(
    config: ModelConfig,
) -> None:
    with torch.no_grad():
        score, offset, size = CentreHead(config).eval()(torch.zeros(1, config.dim, 4, 4))
    assert float(score.mean()) == pytest.approx(0.1, abs=0.05)
    assert float(offset.mean()) == pytest.approx(0.5, abs=0.25)
    assert float(size.mean()) == pytest.approx(0.5, abs=0.25)


@pytest.mark.parametrize("grid", [1, 2, 3, 5])
@pytest.mark.parametrize("tower", ["offset", "net"])
def test_a_tower_at_a_cell_is_its_map_there(config: ModelConfig, tower: str, grid: int) -> None:
    """At every cell: in the middle, at the rim, where the layers pad, and in the corners."""
    torch.manual_seed(0)
    head = CentreHead(config) if tower == "offset" else UncertaintyHead(config)
    layers = getattr(head.double().eval(), tower)
    for module in layers.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # so that zeros do not stay zeros
            for value in (module.weight, module.bias, module.running_mean, module.running_var):
                torch.nn.init.uniform_(value, 0.5, 2.0)
    features = torch.randn(2, config.dim, grid, grid, dtype=torch.float64)
    cells = torch.arange(grid * grid)
    with torch.no_grad():
        maps = layers(features)
        for cell in cells:
            both = torch.stack([cell, grid * grid - 1 - cell])
            found = tower_at(layers, features, both)
            torch.testing.assert_close(found, at_cells(maps, both), rtol=1e-12, atol=1e-12)


def test_heads_answer_in_float32_from_half_precision(config: ModelConfig) -> None:
    features = torch.randn(1, config.dim, 4, 4, dtype=torch.bfloat16)
    maps = (
        *CentreHead(config).bfloat16().eval()(features),
        UncertaintyHead(config).bfloat16().eval()(features),
    )
    assert {part.dtype for part in maps} == {torch.float32}
