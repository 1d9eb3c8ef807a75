"""The losses against numbers worked by hand, and where their gradients go."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from vil_tracker_core.model.heads import SCORE_FLOOR, Prediction, decode, encode
from vil_tracker_core.training.losses import (
    REGRESSION_FLOOR,
    AdaptiveWeights,
    boxes_of,
    focal_loss,
    gaussian_nll,
    giou,
    iou,
    memory_contrastive,
    target_map,
    target_memory,
    tracking_losses,
    weighted_mean,
)

GRID = 8
VISIBLE = torch.tensor([True])


def unit(*values: float) -> Tensor:
    return torch.tensor([values], dtype=torch.float64)


def test_target_map_is_one_at_the_centre_alone() -> None:
    centres = torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    boxes = torch.cat([centres, torch.full((50, 2), 0.3)], dim=1)
    maps = target_map(boxes, torch.ones(50, dtype=torch.bool), GRID)
    assert maps.shape == (50, GRID, GRID)
    assert ((maps == 1).flatten(1).sum(1) == 1).all()
    cells = maps.flatten(1).argmax(1)
    x, y = (centres[:, 0] * GRID).long(), (centres[:, 1] * GRID).long()
    assert torch.equal(cells, y * GRID + x)


def test_target_map_by_hand() -> None:
    """w = 0.75 of 8 cells: sigma 1; h = 0.1: sigma at its floor, half a cell."""
    (one,) = target_map(unit(3.5 / 8, 5.2 / 8, 0.75, 0.1), VISIBLE, GRID)
    row, column = 5, 3
    for distance in range(1, 4):
        assert one[row, column + distance] == pytest.approx(math.exp(-0.5 * distance**2))
        assert one[row, column - distance] == pytest.approx(math.exp(-0.5 * distance**2))
    assert one[row + 1, column] == pytest.approx(math.exp(-0.5 / 0.25))
    assert one[row - 1, column + 1] == pytest.approx(math.exp(-0.5 / 0.25 - 0.5))


def test_target_map_is_empty_where_invisible() -> None:
    nan = math.nan
    boxes = torch.tensor([[nan, nan, nan, nan], [0.5, 0.5, 0.2, 0.2], [0.1, 0.9, 0.2, 0.2]])
    maps = target_map(boxes, torch.tensor([False, False, True]), GRID)
    assert torch.equal(maps[:2], torch.zeros(2, GRID, GRID))
    assert maps[2].max() == 1


def test_focal_loss_by_hand() -> None:
    score = torch.tensor([[[0.8, 0.1], [0.3, 0.5]]], dtype=torch.float64)
    target = torch.tensor([[[1.0, 0.5], [0.0, 0.0]]], dtype=torch.float64)
    expected = -(
        0.2**2 * math.log(0.8)
        + 0.5**4 * 0.1**2 * math.log(0.9)
        + 0.3**2 * math.log(0.7)
        + 0.5**2 * math.log(0.5)
    )
    assert focal_loss(score, target).item() == pytest.approx(expected)
    # summed over cells, a mean over samples
    both = focal_loss(torch.cat([score, 1 - 0 * score - 0.5]), torch.cat([target, 0 * target]))
    half = -4 * 0.5**2 * math.log(0.5)
    assert both.item() == pytest.approx((expected + half) / 2)


def test_focal_loss_of_the_floors_is_finite_and_of_truth_nearly_nothing() -> None:
    target = target_map(unit(0.5, 0.5, 0.3, 0.3), VISIBLE, GRID)
    right = (target == 1).double().clamp(SCORE_FLOOR, 1 - SCORE_FLOOR)
    wrong = (1 - right).requires_grad_()
    assert focal_loss(right, target) < 1e-6
    loss = focal_loss(wrong, target)
    loss.backward()
    assert torch.isfinite(loss)
    assert loss > 100
    assert wrong.grad is not None
    assert torch.isfinite(wrong.grad).all()


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0.5, 0.5, 0.2, 0.4), (0.5, 0.5, 0.2, 0.4), 1.0),  # equal
        # unit squares that touch along an edge: IoU 0, hull 2, union 2
        ((0.5, 0.5, 1.0, 1.0), (1.5, 0.5, 1.0, 1.0), 0.0),
        # a gap as wide as they are: IoU 0, hull 3, union 2
        ((0.5, 0.5, 1.0, 1.0), (2.5, 0.5, 1.0, 1.0), -1 / 3),
        # corner to corner: hull 4, union 2
        ((0.5, 0.5, 1.0, 1.0), (1.5, 1.5, 1.0, 1.0), -0.5),
        # one inside the other, off its middle: IoU 1/4, the hull is the union
        ((1.0, 1.0, 2.0, 2.0), (0.5, 0.5, 1.0, 1.0), 0.25),
        # overlap 1/2 x 1 of unit squares: IoU (1/2) / (3/2), the hull is the union
        ((0.5, 0.5, 1.0, 1.0), (1.0, 0.5, 1.0, 1.0), 1 / 3),
        # overlap 1/2 x 1/2: IoU (1/4) / (7/4), hull 9/4, union 7/4
        ((0.5, 0.5, 1.0, 1.0), (1.0, 1.0, 1.0, 1.0), 1 / 7 - (9 / 4 - 7 / 4) / (9 / 4)),
    ],
)
def test_giou_by_hand(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    assert giou(unit(*a), unit(*b)).item() == pytest.approx(expected)
    assert giou(unit(*b), unit(*a)).item() == pytest.approx(expected)
    maps = [unit(*box)[..., None, None].expand(1, 4, 2, 3) for box in (a, b)]
    assert giou(maps[0], maps[1]).shape == (1, 2, 3)


def test_giou_pulls_distant_boxes_together() -> None:
    box = unit(0.1, 0.1, 0.1, 0.1).requires_grad_()
    (1 - giou(box, unit(0.8, 0.7, 0.1, 0.1))).sum().backward()
    assert box.grad is not None
    assert (box.grad[0, :2] < 0).all(), "going down the gradient must move the centre right, down"


def test_gaussian_nll_by_hand() -> None:
    error, log_var = torch.tensor([2.0, 0.0, 3.0]), torch.tensor([0.0, 1.0, math.log(9)])
    expected = [0.5 * 4, 0.5, 0.5 * (1 + math.log(9))]
    assert gaussian_nll(error, log_var).tolist() == pytest.approx(expected)


def test_gaussian_nll_is_least_at_the_true_variance() -> None:
    log_var = torch.linspace(-3, 3, 601, dtype=torch.float64)
    best = log_var[gaussian_nll(torch.tensor(0.7, dtype=torch.float64), log_var).argmin()]
    assert best.item() == pytest.approx(math.log(0.49), abs=0.01)


def test_weighted_mean_by_hand() -> None:
    values = torch.tensor([1.0, 2.0, 6.0])
    assert weighted_mean(values, torch.tensor([1.0, 1.0, 2.0])).item() == pytest.approx(15 / 4)
    assert weighted_mean(values, torch.zeros(3)).item() == 0


def random_prediction(batch: int = 3, seed: int = 0) -> Prediction:
    made = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(batch, *shape, generator=made).clamp(0.01, 0.99).requires_grad_()

    return Prediction(
        uniform(GRID, GRID), uniform(2, GRID, GRID), uniform(2, GRID, GRID), uniform(4, GRID, GRID)
    )


def test_boxes_of_is_what_decode_says_of_each_cell() -> None:
    prediction = random_prediction()
    boxes = boxes_of(prediction)
    for row, column in ((0, 0), (2, 5), (7, 1)):
        score = torch.zeros(3, GRID, GRID)
        score[:, row, column] = 1
        torch.testing.assert_close(
            boxes[:, :, row, column], decode(prediction._replace(score=score)).unit
        )


def perfect(truth: Tensor, log_var: float = -6.0) -> Prediction:
    """Every cell predicts the true box."""
    batch = len(truth)
    line = torch.arange(GRID, dtype=truth.dtype)
    corner = torch.stack(torch.meshgrid(line, line, indexing="xy"))
    cells, _ = encode(truth, GRID)
    score = torch.zeros(batch, GRID * GRID, dtype=truth.dtype).scatter(1, cells[:, None], 1.0)
    return Prediction(
        score.view(batch, GRID, GRID).clamp(SCORE_FLOOR, 1 - SCORE_FLOOR),
        truth[:, :2, None, None] * GRID - corner,
        truth[:, 2:, None, None].expand(batch, 2, GRID, GRID),
        torch.full((batch, 4, GRID, GRID), log_var, dtype=truth.dtype),
    )


def test_boxes_of_undoes_encode() -> None:
    truth = torch.rand(20, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cells, offset = encode(truth, GRID)
    prediction = perfect(truth)
    assert torch.equal(prediction.score.flatten(1).argmax(1), cells)
    at_centre = prediction.offset.flatten(2)[torch.arange(20), :, cells]
    torch.testing.assert_close(at_centre, offset)
    torch.testing.assert_close(
        boxes_of(prediction), truth[:, :, None, None].expand(20, 4, GRID, GRID)
    )


def test_perfect_prediction_costs_nothing() -> None:
    truth = unit(0.47, 0.61, 0.25, 0.3)
    losses = tracking_losses(perfect(truth), truth, VISIBLE)
    assert losses["giou"].item() == pytest.approx(0, abs=1e-9)
    assert losses["l1"].item() == pytest.approx(0, abs=1e-9)
    assert losses["focal"].item() == pytest.approx(0, abs=1e-6)
    assert losses["nll"].item() == pytest.approx(-3)  # half of the log-variance alone


def test_nll_is_that_of_the_answer_wherever_it_is() -> None:
    truth = unit(0.47, 0.61, 0.25, 0.3)
    right = perfect(truth)
    score = torch.zeros_like(right.score)
    score[:, 1, 2] = 0.9
    offset, log_var = right.offset.clone(), right.log_var.clone()
    offset[:, :, 1, 2] += 0.1 * GRID
    log_var[:, :, 1, 2] = -4
    losses = tracking_losses(
        right._replace(score=score, offset=offset, log_var=log_var), truth, VISIBLE
    )
    wanted = (2 * 0.5 * (0.1**2 * math.exp(4) - 4) + 2 * 0.5 * -4) / 4
    assert losses["nll"].item() == pytest.approx(wanted)


def test_l1_is_the_mean_over_coordinates() -> None:
    truth = unit(0.5, 0.5, 0.25, 0.25)
    off = perfect(truth)
    off = off._replace(size=off.size + 0.1)
    assert tracking_losses(off, truth, VISIBLE)["l1"].item() == pytest.approx(0.05)


def gradients(prediction: Prediction, loss: Tensor) -> list[Tensor]:
    return list(
        torch.autograd.grad(loss, list(prediction), allow_unused=True, materialize_grads=True)
    )


def test_invisible_samples_ask_for_no_box() -> None:
    truth = torch.full((3, 4), math.nan)
    truth[1] = torch.tensor([0.5, 0.5, 0.2, 0.2])
    prediction = random_prediction()
    losses = tracking_losses(prediction, truth, torch.tensor([False, True, False]))
    assert all(torch.isfinite(value) for value in losses.values())
    score, offset, size, log_var = gradients(prediction, sum(losses.values(), torch.zeros(())))
    for maps in (offset, size, log_var):
        assert (maps[[0, 2]] == 0).all()
        assert maps[1].abs().max() > 0
    assert torch.isfinite(score).all()
    assert (score[[0, 2]] > 0).all(), "where nothing is to be seen every score must fall"


def test_all_invisible_costs_the_score_alone() -> None:
    losses = tracking_losses(random_prediction(), torch.full((3, 4), math.nan),
                             torch.zeros(3, dtype=torch.bool))  # fmt: skip
    assert losses["focal"] > 0
    assert [losses[name].item() for name in ("giou", "l1", "nll")] == [0, 0, 0]


def test_box_is_asked_of_cells_near_the_centre_only() -> None:
    truth = torch.tensor([[0.5, 0.5, 0.6, 0.6]]).expand(3, 4)
    visible = torch.ones(3, dtype=torch.bool)
    prediction = random_prediction()
    losses = tracking_losses(prediction, truth, visible)
    _, offset, size, _ = gradients(prediction, losses["l1"] + losses["giou"])
    near = target_map(truth, visible, GRID) > REGRESSION_FLOOR
    assert ((offset != 0).any(1) == near).all()
    assert ((size != 0).any(1) == near).all()
    assert 1 < near[0].sum() < 20


def test_nll_trains_the_variance_alone() -> None:
    truth = torch.tensor([[0.5, 0.5, 0.3, 0.3]]).expand(3, 4)
    prediction = random_prediction()
    losses = tracking_losses(prediction, truth, torch.ones(3, dtype=torch.bool))
    score, offset, size, log_var = gradients(prediction, losses["nll"])
    assert (score == 0).all()
    assert (offset == 0).all()
    assert (size == 0).all()
    assert log_var.abs().max() > 0
    _, _, _, log_var = gradients(prediction, losses["giou"] + losses["l1"] + losses["focal"])
    assert (log_var == 0).all()


def test_iou_by_hand() -> None:
    assert iou(unit(0.5, 0.5, 0.2, 0.4), unit(0.5, 0.5, 0.2, 0.4)).item() == pytest.approx(1)
    assert iou(unit(0.5, 0.5, 1, 1), unit(1.0, 0.5, 1, 1)).item() == pytest.approx(1 / 3)
    assert iou(unit(0.1, 0.1, 0.1, 0.1), unit(0.8, 0.7, 0.1, 0.1)).item() == 0


def test_target_memory_is_the_middle_of_the_template() -> None:
    """4 x 4 tokens, the target half as wide: the middle 2 x 2. Of both templates alike."""
    tokens = torch.zeros(1, 32, 3)
    for template, value in ((0, 1.0), (16, 3.0)):
        for cell in (5, 6, 9, 10):
            tokens[0, template + cell] = value
    assert target_memory(tokens, 4, 2.0).tolist() == [[2.0] * 3]
    assert target_memory(tokens[:, :16], 4, 2.0).tolist() == [[1.0] * 3]
    assert target_memory(tokens[:, :16], 4, 1.0).tolist() == [[0.25] * 3]


@pytest.mark.parametrize("grid", [1, 2, 3, 7])
def test_target_memory_always_has_a_token(grid: int) -> None:
    assert torch.isfinite(target_memory(torch.ones(1, grid * grid, 2), grid, 16.0)).all()


def test_memory_contrastive_by_hand() -> None:
    """2 x 2 cells: the target, one that is neither, and two of background, at temperature 1/2."""
    memory = torch.tensor([[2.0, 0.0]])
    features = torch.tensor([[[3.0, 0.0], [5.0, 1.0], [0.0, 1.0], [-4.0, 0.0]]])  # cosines 1,.,0,-1
    target = torch.tensor([[[1.0, 0.1], [0.0, 0.04]]])
    expected = -math.log(math.e**2 / (math.e**2 + 1 + math.e**-2))
    made = memory_contrastive(memory, features, target, temperature=0.5)
    assert made.item() == pytest.approx(expected, rel=1e-5)
    # a second target cell of half the weight, orthogonal to the memory, and none in another sample
    target[0, 0, 1] = 0.5
    features[0, 1] = torch.tensor([0.0, 9.0])
    other = -math.log(1 / (1 + 1 + math.e**-2))
    made = memory_contrastive(
        memory.repeat(2, 1), features.repeat(2, 1, 1), torch.cat([target, 0 * target]), 0.5
    )
    assert made.item() == pytest.approx((expected + 0.5 * other) / 1.5, rel=1e-5)


def test_memory_contrastive_pulls_the_target_and_pushes_the_rest() -> None:
    memory = torch.tensor([[1.0, 0.0]])
    features = torch.tensor([[[1.0, 1.0], [1.0, 1.0]]]).requires_grad_()
    memory_contrastive(memory, features, torch.tensor([[[1.0, 0.0]]])).backward()
    assert features.grad is not None
    assert features.grad[0, 0, 0] < 0 < features.grad[0, 1, 0]


def test_memory_contrastive_without_background_or_target_is_finite() -> None:
    features = torch.randn(1, 4, 3, requires_grad=True)
    for target in (torch.ones(1, 2, 2), torch.zeros(1, 2, 2)):
        features.grad = None
        loss = memory_contrastive(torch.randn(1, 3), features, target)
        loss.backward()
        assert loss.item() == 0
        assert features.grad is not None
        assert torch.isfinite(features.grad).all()


def test_adaptive_weights_by_hand() -> None:
    balance = AdaptiveWeights(["a", "b"])
    losses = {"b": torch.tensor(3.0), "a": torch.tensor(2.0), "c": torch.tensor(99.0)}
    assert balance(losses).item() == pytest.approx(5)  # as fixed weights at the start
    with torch.no_grad():
        balance.log_var.copy_(torch.tensor([math.log(4), -math.log(2)]))
    assert balance(losses).item() == pytest.approx(2 / 4 + math.log(4) + 3 * 2 - math.log(2))


def test_adaptive_weights_settle_at_the_losses() -> None:
    """d/ds (exp(-s) L + s) = 0 at s = log L: every loss then counts one."""
    balance = AdaptiveWeights(["a", "b"])
    losses = {"a": torch.tensor(0.25), "b": torch.tensor(8.0)}
    optimizer = torch.optim.SGD(balance.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        balance(losses).backward()
        optimizer.step()
    expected = [math.log(0.25), math.log(8)]
    assert balance.log_var.tolist() == pytest.approx(expected, abs=1e-3)
