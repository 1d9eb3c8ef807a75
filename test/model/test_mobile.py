"""The mobile stem against a naive EfficientNet-Lite0 of the published layout, made here."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from vil_tracker_core.model.mobile import (
    FINE_LAYERS,
    MEAN,
    PIECE,
    STD,
    TRUNK_LAYERS,
    InvertedResidual,
    MobileStem,
    MobileTrunk,
    trunk_from_published,
)

# of the paper's table: kernel, stride, expansion, channels in and out, one row a block
BLOCKS = [
    (3, 1, 1, 32, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 6, 24, 24),
    (5, 2, 6, 24, 40),
    (5, 1, 6, 40, 40),
    (3, 2, 6, 40, 80),
    (3, 1, 6, 80, 80),
    (3, 1, 6, 80, 80),
    (5, 1, 6, 80, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
]


def published() -> dict[str, Tensor]:
    """Every tensor down to stride 16, by its published name, with batch norms, in float64."""
    torch.manual_seed(0)
    tensors: dict[str, Tensor] = {}

    def conv(name: str, norm: str, out: int, inner: int, kernel: int) -> None:
        fan = inner * kernel * kernel
        tensors[f"{name}.weight"] = torch.randn(out, inner, kernel, kernel) * (2 / fan) ** 0.5
        tensors[f"{norm}.weight"] = 1 + 0.3 * torch.rand(out)
        tensors[f"{norm}.bias"] = 0.2 * torch.randn(out)
        tensors[f"{norm}.running_mean"] = 0.2 * torch.randn(out)
        tensors[f"{norm}.running_var"] = 0.5 + torch.rand(out)

    conv("_conv_stem", "_bn0", 32, 3, 3)
    for index, (kernel, _, expansion, before, after) in enumerate(BLOCKS):
        block, wide = f"_blocks.{index}.", before * expansion
        if expansion > 1:
            conv(f"{block}_expand_conv", f"{block}_bn0", wide, before, 1)
        conv(f"{block}_depthwise_conv", f"{block}_bn1", wide, 1, kernel)
        conv(f"{block}_project_conv", f"{block}_bn2", after, wide, 1)
    return {name: tensor.double() for name, tensor in tensors.items()}


def naive(tensors: dict[str, Tensor], image: Tensor) -> Tensor:
    """The published net on RGB 0..255, norms apart, padded alike on all sides. Beyond the border
    lies the colour that is 0 after our normalisation, as it does for us."""

    def step(
        x: Tensor, conv: str, norm: str, stride: int = 1, groups: int = 1, pad: bool = True
    ) -> Tensor:
        weight = tensors[f"{conv}.weight"]
        x = F.conv2d(x, weight, None, stride, weight.shape[-1] // 2 if pad else 0, 1, groups)
        mean, var, gain, bias = (
            tensors[f"{norm}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
        )
        return F.batch_norm(x, mean, var, gain, bias, eps=1e-3)

    border = torch.tensor(MEAN, dtype=image.dtype)[None, :, None, None]
    x = (F.pad(image - border, (1, 1, 1, 1)) + border - 127) / 128
    x = step(x, "_conv_stem", "_bn0", 2, pad=False).clamp(0, 6)
    for index, (_, stride, expansion, before, after) in enumerate(BLOCKS):
        block, inner = f"_blocks.{index}.", x
        if expansion > 1:
            inner = step(inner, f"{block}_expand_conv", f"{block}_bn0").clamp(0, 6)
        inner = step(inner, f"{block}_depthwise_conv", f"{block}_bn1", stride, inner.shape[1])
        inner = step(inner.clamp(0, 6), f"{block}_project_conv", f"{block}_bn2")
        x = x + inner if stride == 1 and before == after else inner
    return x


def test_a_trunk_computes_what_the_published_net_does() -> None:
    tensors = published()
    trunk = MobileTrunk().double()
    trunk.load_state_dict(trunk_from_published(tensors))
    image = 255 * torch.rand(2, 3, 64, 48, dtype=torch.float64)
    mean, std = (torch.tensor(each)[:, None, None] for each in (MEAN, STD))
    made = trunk((image - mean) / std)
    assert made.shape == (2, 112, 4, 3)
    wanted = naive(tensors, image)
    assert wanted.std() > 1e-3
    torch.testing.assert_close(made, wanted, rtol=1e-6, atol=1e-6)  # MEAN and STD are float32


def test_a_large_batch_in_training_gives_what_each_image_does_alone() -> None:
    torch.manual_seed(0)
    trunk = MobileTrunk().double().train()
    images = torch.randn(PIECE + 3, 3, 32, 32, dtype=torch.float64)
    together = trunk(images)
    together.square().sum().backward()
    gradient = trunk[0].weight.grad.clone()
    trunk.zero_grad()
    alone = torch.cat([trunk(image[None]) for image in images])
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, trunk[0].weight.grad, rtol=1e-9, atol=1e-9)


def test_a_missing_tensor_is_named() -> None:
    tensors = published()
    del tensors["_blocks.7._bn1.running_var"]
    with pytest.raises(KeyError, match=r"_blocks\.7\._bn1\.running_var"):
        trunk_from_published(tensors)


@pytest.mark.parametrize(
    ("before", "after", "stride", "added"),
    [(8, 8, 1, True), (8, 12, 1, False), (8, 8, 2, False)],
)
def test_a_block_is_added_to_its_input_where_shapes_agree(
    before: int, after: int, stride: int, added: bool
) -> None:
    block = InvertedResidual(before, after, 6, stride, 3)
    torch.nn.init.zeros_(block.project.weight)
    assert block.project.bias is not None
    torch.nn.init.zeros_(block.project.bias)
    x = torch.randn(1, before, 8, 8)
    out = block(x)
    assert out.shape == (1, after, 8 // stride, 8 // stride)
    assert torch.equal(out, x) if added else not out.any()


def test_a_stem_gives_a_token_a_patch_of_16_px() -> None:
    assert MobileStem(24)(torch.randn(2, 3, 112, 112)).shape == (2, 24, 7, 7)


@pytest.mark.parametrize("training", [True, False])
def test_only_in_use_the_fine_layers_are_exact_under_autocast(training: bool) -> None:
    trunk = MobileTrunk().train(training)
    kinds: list[torch.dtype] = []
    for layer in trunk:
        layer.register_forward_hook(lambda _, given, made: kinds.append(made.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        trunk(torch.randn(1, 3, 32, 32))
    fine = [torch.bfloat16 if training else torch.float32] * FINE_LAYERS
    assert kinds == fine + [torch.bfloat16] * (TRUNK_LAYERS - FINE_LAYERS)
