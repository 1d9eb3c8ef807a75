"""The two scans against a stack of blocks run in full, and what the cache may and may not see."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vil_tracker_core.model.backbone import MEAN, STD, Backbone, Embedding
from vil_tracker_core.model.presets import PRESETS, ModelConfig
from vil_tracker_core.model.tracker import ViLTracker, count_parameters

TEMPLATE, SEARCH = 4, 16  # tokens of the smallest config

each_scan = pytest.mark.parametrize("scan", ["joint", "regional"])
each_count = pytest.mark.parametrize("count", [1, 2])


def in_full(backbone: Backbone, templates: Tensor, search: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Features of all tokens [templates | search], no cache; and each block's output."""
    count = templates.shape[1]
    embedding = backbone.embedding
    parts, matched = zip(
        *(embedding.templates(templates[:, n : n + 1]) for n in range(count)), strict=True
    )
    x = torch.cat([*parts, embedding.search(search, torch.stack(matched).mean(0))[0]], dim=1)
    lengths = [TEMPLATE] * count + [SEARCH]
    outputs = []
    for index, block in enumerate(backbone.blocks):
        if index % 2 == 0:
            x = block(x)[0]
        elif backbone.config.scan == "joint":
            x = block(x.flip(1))[0].flip(1)
        else:
            x = torch.cat([block(p.flip(1))[0].flip(1) for p in x.split(lengths, dim=1)], dim=1)
        outputs.append(x)
    return backbone.norm(x), outputs


@each_scan
@each_count
def test_encoded_once_equals_encoded_anew(
    make_tracker: Callable[..., ViLTracker], images, scan: str, count: int
) -> None:
    backbone = make_tracker(scan=scan).backbone
    templates, search = images(2, count, 3, 32, 32), images(2, 3, 64, 64)
    wanted, _ = in_full(backbone, templates, search)
    cached = backbone.encode_templates(templates)
    for _ in range(2):  # the cache serves any number of frames
        features = backbone(search, cached, []).features
        torch.testing.assert_close(features, wanted[:, -SEARCH:], rtol=1e-9, atol=1e-9)
    if scan == "regional":
        torch.testing.assert_close(cached.features, wanted[:, :-SEARCH], rtol=1e-9, atol=1e-9)


@each_count
def test_regional_templates_never_see_the_search(
    make_tracker: Callable[..., ViLTracker], images, count: int
) -> None:
    """In the uncached run, where they could."""
    backbone = make_tracker().backbone
    templates = images(1, count, 3, 32, 32)
    one, _ = in_full(backbone, templates, images(1, 3, 64, 64))
    other, _ = in_full(backbone, templates, images(1, 3, 64, 64))
    torch.testing.assert_close(one[:, :-SEARCH], other[:, :-SEARCH], rtol=0, atol=1e-12)
    assert not torch.allclose(one[:, -SEARCH:], other[:, -SEARCH:])


@each_scan
def test_every_template_counts(make_tracker: Callable[..., ViLTracker], images, scan: str) -> None:
    """But in the stem's features, which are the search crop's alone."""
    backbone = make_tracker(scan=scan).backbone
    templates, search = images(1, 2, 3, 32, 32), images(1, 3, 64, 64)
    wanted, _, _, seen = backbone(search, backbone.encode_templates(templates), [])
    for changed in (templates[:, :1], templates[:, 1:], templates.flip(1)):
        found = backbone(search, backbone.encode_templates(changed), [])
        assert (found.features - wanted).abs().max() > 1e-6
        assert found.seen.equal(seen)
    assert seen.shape == (1, 16, 4, 4)


@each_scan
def test_tap_gives_the_search_tokens_after_a_block(
    make_tracker: Callable[..., ViLTracker], images, scan: str
) -> None:
    backbone = make_tracker(scan=scan).backbone
    templates, search = images(1, 1, 3, 32, 32), images(1, 3, 64, 64)
    _, outputs = in_full(backbone, templates, search)
    cached = backbone.encode_templates(templates)
    for index, output in enumerate(outputs):
        tapped = backbone(search, cached, [], index).tapped
        torch.testing.assert_close(tapped, output[:, -SEARCH:], rtol=1e-9, atol=1e-9)
    assert backbone(search, cached, []).tapped is None


@each_scan
def test_modulation_follows_every_second_block_on_the_search_tokens_only(
    make_tracker: Callable[..., ViLTracker], images, scan: str
) -> None:
    """film_every = 2 of 4 blocks: before block 0, after blocks 1 and 3."""
    backbone = make_tracker(scan=scan).backbone
    templates, search = images(1, 1, 3, 32, 32), images(1, 3, 64, 64)
    cached = backbone.encode_templates(templates)
    inputs: dict[int, Tensor] = {}
    outputs: dict[int, Tensor] = {}
    for index, block in enumerate(backbone.blocks):

        def keep(module, args, result, index: int = index) -> None:
            flip = index % 2 == 1
            inputs[index] = args[0].flip(1) if flip else args[0]
            outputs[index] = result[0].flip(1) if flip else result[0]

        block.register_forward_hook(keep)
    pairs = [(images(1, SEARCH, 16) / 255, images(1, SEARCH, 16) / 255) for _ in range(3)]
    features = backbone(search, cached, pairs).features
    before = TEMPLATE if scan == "joint" else 0
    gamma, beta = pairs[0]
    embedded, _ = backbone.embedding.search(search, cached.matched)
    assert inputs[0][:, before:].equal(embedded * gamma + beta)
    if scan == "joint":
        assert inputs[0][:, :before].equal(cached.tokens)
    gamma, beta = pairs[1]
    assert inputs[1].equal(outputs[0])
    assert inputs[2][:, :before].equal(outputs[1][:, :before])
    assert inputs[2][:, before:].equal(outputs[1][:, before:] * gamma + beta)
    assert inputs[3].equal(outputs[2])
    gamma, beta = pairs[2]
    assert features.equal(backbone.norm(outputs[3][:, before:] * gamma + beta))


@each_scan
def test_a_batch_equals_its_samples(
    make_tracker: Callable[..., ViLTracker], images, scan: str
) -> None:
    backbone = make_tracker(scan=scan).backbone
    templates, search = images(3, 1, 3, 32, 32), images(3, 3, 64, 64)
    together = backbone(search, backbone.encode_templates(templates), []).features
    for n in range(3):
        one = slice(n, n + 1)
        alone = backbone(search[one], backbone.encode_templates(templates[one]), []).features
        torch.testing.assert_close(alone, together[one], rtol=1e-9, atol=1e-9)


def test_patch_stem_is_a_linear_map_of_patches(
    make_tracker: Callable[..., ViLTracker], images
) -> None:
    """Tokens run along rows; pixels are normalised by ImageNet's RGB statistics."""
    embedding = make_tracker(match_width=0).backbone.embedding
    image = images(1, 3, 64, 64)
    normal = (image - torch.tensor(MEAN).double().view(3, 1, 1)) / torch.tensor(STD).double().view(
        3, 1, 1
    )
    tokens = []
    for row in range(4):
        for column in range(4):
            patch = normal[0, :, 16 * row : 16 * row + 16, 16 * column : 16 * column + 16]
            token = embedding.stem.weight.flatten(1) @ patch.flatten() + embedding.stem.bias
            centred = token - token.mean()
            tokens.append(centred / (centred.square().mean() + 1e-5).sqrt())
    wanted = torch.stack(tokens) * embedding.norm.weight
    wanted = wanted + embedding.search_position[0] + embedding.search_type
    # the statistics are float32 constants
    torch.testing.assert_close(embedding.search(image, None)[0][0], wanted, rtol=1e-6, atol=1e-6)


def test_conv_stem_gives_one_token_a_patch(make_tracker: Callable[..., ViLTracker], images) -> None:
    embedding: Embedding = make_tracker(stem="conv", stem_channels=(4, 4, 8)).backbone.embedding
    tokens, matched = embedding.templates(images(2, 1, 3, 32, 32))
    assert tokens.shape == (2, TEMPLATE, 16)
    assert embedding.search(images(2, 3, 64, 64), matched)[0].shape == (2, SEARCH, 16)


def on_meta(config: ModelConfig) -> ViLTracker:
    """The net without its memory: enough to count."""
    with torch.device("meta"):
        return ViLTracker(config)


def test_parameters_of_the_reference() -> None:
    """The table of the design, in millions."""
    model = on_meta(PRESETS["vil_s"])
    backbone = model.backbone
    counted = {
        "embedding": count_parameters(backbone.embedding),
        "blocks": count_parameters(backbone.blocks) + count_parameters(backbone.norm),
        "film": count_parameters(model.film),
        "centre head": count_parameters(model.centre_head),
        "uncertainty head": count_parameters(model.uncertainty_head),
        "whole": count_parameters(model),
    }
    film = model.film
    ours = count_parameters(film.correction) + count_parameters(film.continuation)
    counted["film"] -= ours  # which the reference has not
    counted["whole"] -= ours
    wanted = {
        "embedding": (0.42, 0.01),
        "blocks": (22 * 0.92 + 2 * 6.23, 0.01),
        "film": (0.78, 0.01),
        "centre head": (1.92, 0.10),
        "uncertainty head": (0.52, 0.10),
        "whole": (36.33, 0.01),
    }
    print()
    for part, (millions, tolerance) in wanted.items():
        print(f"{part:>18} {counted[part] / 1e6:8.3f} M, wanted {millions:.2f} M")
        assert counted[part] / 1e6 == pytest.approx(millions, rel=tolerance), part
    whole = counted.pop("whole")
    assert sum(counted.values()) == whole
    assert counted["embedding"] + counted["blocks"] == pytest.approx(33.11e6, rel=0.01)
    assert whole * 2 / 2**20 == pytest.approx(69.3, rel=0.01)  # MB in fp16


def test_the_shipped_net_is_small() -> None:
    assert count_parameters(on_meta(PRESETS["vil_nano"])) <= 4e6
