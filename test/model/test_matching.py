"""The comparison with the template against sums written out, and against an ONNX network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor

from vil_tracker_core.model.init_from import read_checkpoint
from vil_tracker_core.model.matching import Comparison, Matcher, matcher_from_convolutions

BEFORE, WIDTH, GRID, SIDE = 5, 6, 4, 3
CELLS = SIDE * SIDE


def matcher() -> Matcher:
    torch.manual_seed(0)
    return Matcher(BEFORE, WIDTH, CELLS, dim=7).double()


def test_a_new_matcher_adds_nothing_and_learns_from_its_last_map_on() -> None:
    net = matcher()
    features = torch.randn(2, BEFORE, GRID, GRID, dtype=torch.float64)
    known = net.templates(torch.randn(2, BEFORE, SIDE, SIDE, dtype=torch.float64), 1)
    out = net(features, known)
    assert out.shape == (2, GRID * GRID, 7)
    assert not out.any()
    out.sum().backward()
    assert net.project.weight.grad is not None
    assert net.project.weight.grad.any()


def separable(layers: torch.nn.Sequential, x: np.ndarray) -> np.ndarray:
    """A 3x3 convolution of each channel, a sum over channels, and what is above zero, by loops."""
    (depthwise, pointwise) = (dict(layer.named_parameters()) for layer in list(layers)[:2])
    weight = depthwise["weight"].detach().numpy()[:, 0]
    channels, rows, columns = x.shape
    padded = np.zeros((channels, rows + 2, columns + 2))
    padded[:, 1:-1, 1:-1] = x
    filtered = np.zeros_like(x)
    for row in range(rows):
        for column in range(columns):
            around = padded[:, row : row + 3, column : column + 3]
            filtered[:, row, column] = (around * weight).sum((1, 2))
    if "bias" in depthwise:
        filtered += depthwise["bias"].detach().numpy()[:, None, None]
    mixed = np.einsum("oc,chw->ohw", pointwise["weight"].detach().numpy()[..., 0, 0], filtered)
    return np.maximum(mixed + pointwise["bias"].detach().numpy()[:, None, None], 0)


def test_a_comparison_is_every_cells_product_with_every_cell_of_the_template() -> None:
    net = Comparison(WIDTH, CELLS).double()
    rng = np.random.default_rng(1)
    features = rng.normal(size=(WIDTH, GRID, GRID))
    template = rng.normal(size=(WIDTH, CELLS))
    seen = separable(net.search, features)
    products = np.zeros((CELLS, GRID, GRID))
    for cell in range(CELLS):
        for row in range(GRID):
            for column in range(GRID):
                products[cell, row, column] = template[:, cell] @ seen[:, row, column]
    wanted = separable(net.mix, np.concatenate([seen, products]))
    made = net(torch.from_numpy(features)[None], torch.from_numpy(template)[None])[0]
    np.testing.assert_allclose(made.detach().numpy(), wanted, atol=1e-12)
    assert (wanted > 0).any()


def test_two_templates_are_compared_as_their_mean() -> None:
    net = matcher()
    features = torch.randn(3, 2, BEFORE, SIDE, SIDE, dtype=torch.float64)
    together = net.templates(features.flatten(0, 1), 2)
    one, other = (net.templates(features[:, index], 1) for index in range(2))
    assert together.shape == (3, WIDTH, CELLS)
    torch.testing.assert_close(together, (one + other) / 2)


def published(net: Matcher) -> onnx.ModelProto:
    """A network from features on, with the matcher's convolutions in FEAR's order and values of
    its own; its outputs are what both comparisons find."""
    rng = np.random.default_rng(2)
    nodes, tensors, count = [], [], 0

    def put(op: str, inputs: list[str], **attributes: object) -> str:
        nodes.append(helper.make_node(op, inputs, [f"x{len(nodes)}"], **attributes))
        return str(nodes[-1].output[0])

    def conv(x: str, shape: tuple[int, ...], groups: int = 1, bias: bool = True) -> str:
        nonlocal count
        count += 1
        names = [f"w{count}"] + [f"b{count}"] * bias
        for name, size in zip(names, (shape, shape[:1]), strict=False):
            values = rng.normal(0, 0.5, size).astype(np.float32)
            tensors.append(onnx.numpy_helper.from_array(values, name))
        return put("Conv", [x, *names], group=groups, pads=[shape[-1] // 2] * 4)

    wide = WIDTH + CELLS
    neck = conv("features", (WIDTH, BEFORE, 1, 1))
    seen = []
    for _ in range(2):
        x = conv(neck, (WIDTH, 1, 3, 3), WIDTH, bias=False)
        seen.append(put("Relu", [conv(x, (WIDTH, WIDTH, 1, 1))]))
    tensors.append(onnx.numpy_helper.from_array(np.array([1, WIDTH, -1]), "flat"))
    tensors.append(onnx.numpy_helper.from_array(np.array([1, CELLS, GRID, GRID]), "grid"))
    transposed = put("Transpose", ["template"], perm=[0, 2, 1])
    found = []
    for x in seen:
        products = put("MatMul", [transposed, put("Reshape", [x, "flat"])])
        x = put("Concat", [x, put("Reshape", [products, "grid"])], axis=1)
        x = conv(x, (wide, 1, 3, 3), wide)
        found.append(put("Relu", [conv(x, (WIDTH, wide, 1, 1))]))
    inputs = [
        helper.make_tensor_value_info("features", TensorProto.FLOAT, [1, BEFORE, GRID, GRID]),
        helper.make_tensor_value_info("template", TensorProto.FLOAT, [1, WIDTH, CELLS]),
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in found]
    graph = helper.make_graph(nodes, "published", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)


def read(net: Matcher, path: Path) -> dict[str, Tensor]:
    onnx.save(published(net), str(path))
    return read_checkpoint(path)


def test_a_matcher_computes_what_the_published_net_does(tmp_path: Path) -> None:
    net = matcher().float()
    path = tmp_path / "published.onnx"
    tensors = read(net, path)
    names = matcher_from_convolutions(tensors, 1, net)
    assert set(names.values()) == set(tensors)
    state = net.state_dict()
    net.load_state_dict(state | {ours: tensors[name] for ours, name in names.items()})
    features, template = torch.randn(1, BEFORE, GRID, GRID), torch.randn(1, WIDTH, CELLS)
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    feed = {"features": features.numpy(), "template": template.numpy()}
    place, extent = session.run(None, feed)
    seen = net.neck(features)
    for made, wanted in ((net.place, place), (net.extent, extent)):
        assert wanted.std() > 1e-2
        np.testing.assert_allclose(made(seen, template).detach(), wanted, rtol=1e-4, atol=1e-4)


def test_a_network_that_is_not_the_matchers_is_refused(tmp_path: Path) -> None:
    net = matcher()
    tensors = read(net, tmp_path / "published.onnx")
    with pytest.raises(ValueError, match=r"convolution 2\.weight is \(1,\), the matcher's is \(6"):
        matcher_from_convolutions(tensors | {"convolution 2.weight": torch.ones(1)}, 1, net)
    del tensors["convolution 9.bias"]
    with pytest.raises(ValueError, match=r"convolution 9\.bias is missing"):
        matcher_from_convolutions(tensors, 1, net)
