"""The mobile stem against an ONNX network of FEAR-XS's layout, made here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper

from vil_tracker_core.model.init_from import read_checkpoint
from vil_tracker_core.model.mobile import (
    FINE_LAYERS,
    PIECE,
    TRUNK_LAYERS,
    InvertedResidual,
    MobileStem,
    MobileTrunk,
    trunk_from_convolutions,
)

# kernel, stride, expansion, channels in and out, one row a block
BLOCKS = [
    (3, 1, 1, 16, 16),
    (3, 2, 6, 16, 24),
    (3, 1, 1, 24, 24),
    (3, 1, 1, 24, 24),
    (5, 2, 6, 24, 32),
    (5, 1, 3, 32, 32),
    (5, 1, 6, 32, 32),
    (3, 1, 6, 32, 32),
    (5, 2, 6, 32, 64),
    (5, 1, 3, 64, 64),
    (5, 1, 6, 64, 64),
    (5, 1, 6, 64, 64),
    (5, 1, 6, 64, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 6, 112, 112),
    (5, 1, 3, 112, 112),
]


def published() -> onnx.ModelProto:
    """Images -> features of 256 channels, with weights of its own."""
    rng = np.random.default_rng(0)
    nodes: list[onnx.NodeProto] = []
    tensors: list[onnx.TensorProto] = []

    def put(op: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"x{len(nodes)}"], **attributes))
        return f"x{len(nodes) - 1}"

    def conv(x: str, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1) -> str:
        fan = kernel * kernel * before // groups
        weight = rng.normal(0, (2 / fan) ** 0.5, (after, before // groups, kernel, kernel))
        names = [f"w{len(tensors)}", f"b{len(tensors)}"]
        for name, values in zip(names, (weight, rng.normal(0, 0.2, after)), strict=True):
            tensors.append(onnx.numpy_helper.from_array(values.astype(np.float32), name))
        pads = [kernel // 2] * 4
        return put("Conv", [x, *names], strides=[stride] * 2, group=groups, pads=pads)

    x = put("Relu", [conv("image", 3, 16, 3, 2)])
    for kernel, stride, expansion, before, after in BLOCKS:
        wide, inner = before * expansion, x
        if expansion > 1:
            inner = put("Relu", [conv(x, before, wide, 1)])
        inner = put("Relu", [conv(inner, wide, wide, kernel, stride, wide)])
        inner = conv(inner, wide, after, 1)
        x = put("Add", [x, inner]) if stride == 1 and before == after else inner
    trunk = helper.make_tensor_value_info(x, TensorProto.FLOAT, None)
    features = helper.make_tensor_value_info(conv(x, 112, 256, 1), TensorProto.FLOAT, None)
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, "h", "w"])
    graph = helper.make_graph(nodes, "published", [image], [trunk, features], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def test_a_trunk_computes_what_the_published_net_does(tmp_path: Path) -> None:
    path = tmp_path / "published.onnx"
    onnx.save(published(), str(path))
    tensors = read_checkpoint(path)
    trunk = MobileTrunk()
    names = trunk_from_convolutions(tensors)
    trunk.load_state_dict({ours: tensors[name] for ours, name in names.items()})
    assert set(tensors) - set(names.values()) == {"convolution 47.weight", "convolution 47.bias"}
    image = torch.randn(2, 3, 64, 48)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    wanted, _ = session.run(None, {"image": image.numpy()})
    assert wanted.shape == (2, 112, 4, 3)
    assert wanted.std() > 1e-2
    made = trunk(image).detach().numpy()
    assert np.abs(made - wanted).max() < 1e-5 * np.abs(wanted).max()


def test_a_network_that_is_not_the_trunks_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "published.onnx"
    onnx.save(published(), str(path))
    tensors = read_checkpoint(path)
    with pytest.raises(ValueError, match=r"convolution 2\.weight is \(1,\), the trunk's is \(16, "):
        trunk_from_convolutions(tensors | {"convolution 2.weight": torch.ones(1)})
    del tensors["convolution 46.bias"]
    with pytest.raises(ValueError, match=r"convolution 46\.bias is missing"):
        trunk_from_convolutions(tensors)


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
    stem = MobileStem(24)
    image = torch.randn(2, 3, 112, 112)
    maps, features = stem(image)
    assert maps.shape == (2, 24, 7, 7)
    assert torch.equal(features, stem.trunk(image))


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
