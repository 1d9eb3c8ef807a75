"""A checkpoint of the published layout, made here: its way into our net and back."""

from __future__ import annotations

import copy
import math
import re
import shlex
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from vil_tracker_core.model.init_from import (
    CheckpointError,
    from_published,
    read_checkpoint,
    to_published,
)
from vil_tracker_core.model.matching import PUBLISHED
from vil_tracker_core.model.mobile import MobileTrunk
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker

DIM, INNER, HEADS, DEPTH, GRID = 16, 32, 4, 4, 4
WAYS = ("rowwise_from_top_left", "rowwise_from_bot_right")


@pytest.fixture(scope="module")
def net(config: ModelConfig) -> ViLTracker:
    torch.manual_seed(0)
    return ViLTracker(replace(config, heads=HEADS, depth=DEPTH)).double()


def published(grid: int = GRID, depth: int = DEPTH) -> dict[str, Tensor]:
    """Every tensor of a VisionLSTM (version 1) by its published name and shape, in float64.

    Multiples of 2^-12, so that 1 + w is exact in any type.
    """
    shapes = {
        "pos_embed.embed": (1, grid, grid, DIM),
        "patch_embed.proj.weight": (DIM, 3, 16, 16),
        "patch_embed.proj.bias": (DIM,),
        "legacy_norm.weight": (DIM,),
        "norm.weight": (DIM,),
        "norm.bias": (DIM,),
        "head.weight": (10, DIM),
        "head.bias": (10,),
    }
    for index in range(depth):
        block = {
            "norm.weight": (DIM,),
            "layer.learnable_skip": (INNER,),
            "layer.proj_up.weight": (2 * INNER, DIM),
            "layer.q_proj.weight": (INNER // 4, 4, 4),
            "layer.k_proj.weight": (INNER // 4, 4, 4),
            "layer.v_proj.weight": (INNER // 4, 4, 4),
            "layer.conv1d.conv.weight": (INNER, 1, 4),
            "layer.conv1d.conv.bias": (INNER,),
            "layer.mlstm_cell.igate.weight": (HEADS, 3 * INNER),
            "layer.mlstm_cell.igate.bias": (HEADS,),
            "layer.mlstm_cell.fgate.weight": (HEADS, 3 * INNER),
            "layer.mlstm_cell.fgate.bias": (HEADS,),
            "layer.mlstm_cell.outnorm.weight": (INNER,),
            "layer.proj_down.weight": (DIM, INNER),
        }
        shapes |= {f"blocks.{index}.{name}": shape for name, shape in block.items()}
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.randint(-2048, 2048, shape, generator=generator).double() / 4096
        for name, shape in shapes.items()
    }


def naive_block(tensors: dict[str, Tensor], index: int, x: Tensor) -> Tensor:
    """A published block on (S, dim), token by token from ViL's equations. (The published code
    adds 1e-6 to the normaliser, which the norm of each head takes out again but for 1e-6.)"""

    def get(name: str) -> Tensor:
        return tensors[f"blocks.{index}.{name}"]

    def norm(values: Tensor, weight: Tensor) -> Tensor:
        centred = values - values.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * (1 + weight)

    backwards = index % 2 == 1
    if backwards:
        x = x.flip(0)
    length, head = len(x), INNER // HEADS
    inner = torch.stack([get("layer.proj_up.weight") @ norm(t, get("norm.weight")) for t in x])
    u, z = inner[:, :INNER], inner[:, INNER:]
    taps, bias = get("layer.conv1d.conv.weight"), get("layer.conv1d.conv.bias")
    c = torch.zeros_like(u)
    for t in range(length):
        c[t] = bias
        for tap in range(4):
            if t - 3 + tap >= 0:
                c[t] += taps[:, 0, tap] * u[t - 3 + tap]
    c = c * torch.sigmoid(c)

    def project(name: str, values: Tensor) -> Tensor:
        return values @ torch.block_diag(*get(f"layer.{name}.weight")).T

    q, k, v = project("q_proj", c), project("k_proj", c), project("v_proj", u)
    qkv = torch.cat([q, k, v], dim=1)
    i, f = (
        qkv @ get(f"layer.mlstm_cell.{gate}.weight").T + get(f"layer.mlstm_cell.{gate}.bias")
        for gate in ("igate", "fgate")
    )
    h = torch.zeros_like(u)
    for n in range(HEADS):
        part = slice(n * head, (n + 1) * head)
        for t in range(length):
            logs = [
                i[s, n] + sum(F.logsigmoid(f[r, n]) for r in range(s + 1, t + 1))
                for s in range(t + 1)
            ]
            m = max(logs)
            weights = [
                torch.exp(log - m) * (q[t, part] @ k[s, part]) / math.sqrt(head)
                for s, log in enumerate(logs)
            ]
            total = sum(w * v[s, part] for s, w in enumerate(weights))
            read = total / torch.maximum(sum(weights).abs(), torch.exp(-m))
            h[t, part] = norm(read, get("layer.mlstm_cell.outnorm.weight")[part])
    h = (h + get("layer.learnable_skip") * c) * (z * torch.sigmoid(z))
    out = x + h @ get("layer.proj_down.weight").T
    return out.flip(0) if backwards else out


def as_trained(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the spelling of the published training checkpoints."""
    out = {}
    for name, tensor in tensors.items():
        name = re.sub(r"^norm\.", "head.0.", name)
        name = re.sub(r"^head\.(weight|bias)", r"head.1.\1", name)
        name = name.replace("legacy_norm.", "xlstm.post_blocks_norm.")
        name = re.sub(r"^(blocks\.\d+\.)norm\.", r"xlstm.\1xlstm_norm.", name)
        name = re.sub(r"^(blocks\.\d+\.)layer\.", r"xlstm.\1xlstm.", name)
        out[name] = tensor
    return out


def as_pairs(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same in the spelling of VisionLSTM2 with the convolution of version 1."""
    out = {}
    swap = {"norm": "legacy_norm", "legacy_norm": "norm"}
    for name, tensor in tensors.items():
        first, rest = name.split(".", 1)
        if first == "blocks":
            index, rest = rest.split(".", 1)
            rest = f"{int(index) // 2}.{WAYS[int(index) % 2]}.{rest}"
        name = f"{swap.get(first, first)}.{rest}"
        out[name.replace(".conv1d.", ".conv.")] = tensor
    return out


def test_our_blocks_compute_what_the_published_ones_do(net: ViLTracker) -> None:
    tensors = published()
    state, _ = from_published(tensors, net)
    ours = ViLTracker(net.config).double().eval()
    ours.load_state_dict(state)
    x = torch.randn(9, DIM, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for index in (0, 1):
        block = ours.backbone.blocks[index]
        flip = [1] if index % 2 else []
        found = block(x[None].flip(flip))[0].flip(flip)[0]
        expected = naive_block(tensors, index, x)
        assert (expected - x).abs().max() > 0.1
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    last = F.layer_norm(x, (DIM,), 1 + tensors["legacy_norm.weight"])
    torch.testing.assert_close(ours.backbone.norm(x), last, rtol=0, atol=1e-12)
    image = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    patches = F.conv2d(
        image, tensors["patch_embed.proj.weight"], tensors["patch_embed.proj.bias"], stride=16
    )
    torch.testing.assert_close(ours.backbone.embedding.stem(image), patches)


def test_published_to_ours_and_back_is_exact(net: ViLTracker) -> None:
    tensors = published()
    state, report = from_published(tensors, net)
    back = to_published(state, net.config)
    assert set(back) == set(report.taken) == set(tensors) - set(report.left)
    for name, tensor in back.items():
        assert torch.equal(tensor, tensors[name]), name


def test_ours_to_published_and_back_is_exact(net: ViLTracker) -> None:
    ours = copy.deepcopy(net).float().state_dict()
    for name, tensor in ours.items():
        if re.search(r"norm(\.weight)?$", name):
            tensor.uniform_(0.6, 1.8)
    torch.manual_seed(3)
    other = ViLTracker(net.config)
    state, report = from_published(to_published(ours, net.config), other)
    assert not report.left
    template = "backbone.embedding.template_position"
    for name, tensor in ours.items():
        if name in report.fresh:
            assert torch.equal(state[name], other.state_dict()[name]), name
        elif name != template:  # that one comes from the search region's
            assert torch.equal(state[name], tensor), name


@pytest.mark.parametrize("spelled", [as_trained, as_pairs])
def test_all_spellings_give_the_same_net(net: ViLTracker, spelled) -> None:
    expected, plain = from_published(published(), net)
    state, report = from_published(spelled(published()), net)
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert len(report.taken) == len(plain.taken) == 1 + 3 + 14 * DEPTH
    assert set(report.left.values()) == {"classifier"}
    assert len(report.left) == 4


def test_what_is_not_in_the_checkpoint_is_named_and_kept(net: ViLTracker) -> None:
    state, report = from_published(published(), net)
    before = net.state_dict()
    heads = {"film", "centre_head", "uncertainty_head"}
    parts = {name.split(".")[0] for name in report.fresh}
    assert parts == {*heads, "backbone"}
    inside = {re.sub(r"\d+", "N", n.split(".", 1)[1]) for n in report.fresh if "backbone" in n}
    assert inside >= {"embedding.search_type", "embedding.norm.weight", "blocks.N.scale"}
    assert any(".mlp.shared." in name for name in inside)
    assert not any(".cell." in name for name in inside)
    for name in report.fresh:
        assert torch.equal(state[name], before[name])
    assert set(state) == set(before)


def test_version_2_as_published_is_taken_but_for_biases_and_convolution(net: ViLTracker) -> None:
    tensors = as_pairs(published())
    for way in WAYS:
        for pair in range(DEPTH // 2):
            block = f"blocks.{pair}.{way}"
            tensors.pop(f"{block}.layer.conv.conv.weight")
            tensors.pop(f"{block}.layer.conv.conv.bias")
            tensors[f"{block}.layer.conv.weight"] = torch.zeros(INNER, 1, 3, 3)
            tensors[f"{block}.layer.conv.bias"] = torch.zeros(INNER)
            tensors[f"{block}.layer.proj_up.bias"] = torch.zeros(2 * INNER)
            tensors[f"{block}.norm.bias"] = torch.zeros(DIM)
    tensors["norm.bias"] = torch.zeros(DIM)
    state, report = from_published(tensors, net)
    first = f"blocks.1.{WAYS[1]}"
    assert report.left[f"{first}.layer.conv.weight"] == "2-D convolution: ours is causal"
    assert report.left[f"{first}.layer.proj_up.bias"] == "ours has no bias there"
    assert report.left["norm.bias"] == "ours has no bias there"
    assert report.taken[f"{first}.layer.proj_up.weight"] == ("backbone.blocks.3.cell.up.weight",)
    assert report.taken["norm.weight"] == ("backbone.norm.weight",)
    conv = "backbone.blocks.3.cell.conv.weight"
    assert conv in report.fresh
    assert torch.equal(state[conv], net.state_dict()[conv])


def test_positions_of_another_grid_are_resampled_in_two_dimensions(net: ViLTracker) -> None:
    tensors = published(grid=14)
    line = torch.arange(14, dtype=torch.float64)
    positions = torch.zeros(1, 14, 14, DIM, dtype=torch.float64)
    positions[..., 0], positions[..., 1] = line[:, None], line[None, :]
    state, report = from_published({**tensors, "pos_embed.embed": positions}, net)
    found = state["backbone.embedding.search_position"].unflatten(1, (GRID, GRID))[0]
    at = (torch.arange(GRID, dtype=torch.float64) + 0.5) * 14 / GRID - 0.5
    expected = at[:, None].expand(GRID, GRID)
    # a cubic kernel is not exact on a ramp; a grid read in one dimension is off by whole rows
    torch.testing.assert_close(found[..., 0], expected, rtol=0, atol=0.1)
    torch.testing.assert_close(found[..., 1], expected.T, rtol=0, atol=0.1)
    assert len(report.taken["pos_embed.embed"]) == 2
    assert state["backbone.embedding.template_position"].shape == (1, 4, DIM)


def test_a_net_of_fewer_blocks_and_another_stem_takes_what_fits(config: ModelConfig) -> None:
    shallow = replace(config, heads=HEADS, depth=2, stem="conv", stem_channels=(4, 4, 8))
    state, report = from_published(published(), ViLTracker(shallow))
    assert report.left["patch_embed.proj.weight"] == "the preset's stem is 'conv'"
    assert report.left["blocks.2.layer.learnable_skip"] == "the preset has 2 blocks"
    skip = published()["blocks.1.layer.learnable_skip"].float()
    assert torch.equal(state["backbone.blocks.1.cell.skip"], skip)


def test_rows_gather_the_blocks(net: ViLTracker) -> None:
    _, report = from_published(published(), net)
    rows = report.rows()
    up = ("blocks.N.layer.proj_up.weight", "-> backbone.blocks.N.cell.up.weight", DEPTH)
    assert up in rows
    assert ("head.weight", "not taken: classifier", 1) in rows
    assert sum(count for *_, count in rows) == len(published()) + len(report.fresh)
    assert [row[1] for row in rows].count("film.*") == 1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.0.layer.proj_up.weight": torch.zeros(48, 12)}, "proj_up.weight is .48, 12."),
        ({"pos_embed.embed": torch.zeros(1, 16, DIM)}, r"takes \(1, rows, columns, 16\)"),
        ({"pos_embed.embed": torch.zeros(1, 0, 4, DIM)}, "pos_embed.embed is empty"),
        ({"blocks.1.layer.conv1d.conv.weight": torch.zeros(INNER, 4)}, r"takes \(32, 1, 4\)"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(
    net: ViLTracker, change: dict[str, Tensor], words: str
) -> None:
    with pytest.raises(CheckpointError, match=words):
        from_published({**published(), **change}, net)


def test_a_checkpoint_of_something_else_is_refused(net: ViLTracker) -> None:
    with pytest.raises(CheckpointError, match="no block of a published ViL"):
        from_published(
            {"conv1.weight": torch.zeros(3), "blocks.0.norm1.weight": torch.ones(3)}, net
        )


def test_a_file_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Also one that begins with a pickle's first byte, which a length of 128 + 256 n does."""
    for padding in range(256):
        path = tmp_path / "vil.safetensors"
        tensors = {"a" * (1 + padding): torch.ones(2)}
        save_file(tensors, path)
        if path.read_bytes()[0] == 0x80:
            break
    assert path.read_bytes()[0] == 0x80
    assert read_checkpoint(path).keys() == tensors.keys()


@pytest.mark.parametrize("modern", [True, False])
def test_a_pickle_is_refused_and_the_remedy_works(tmp_path: Path, modern: bool) -> None:
    tensors = {name: tensor.float() for name, tensor in published(depth=1).items()}
    source = tmp_path / "vil small.th"
    torch.save({"state_dict": tensors}, source, _use_new_zipfile_serialization=modern)
    with pytest.raises(CheckpointError, match=r"vil small.th is a pickle") as refusal:
        read_checkpoint(source)
    if modern:
        command = shlex.split(str(refusal.value).split("make safetensors of it with: ")[1])
        subprocess.run([sys.executable, *command[1:]], check=True, timeout=120)
        found = read_checkpoint(tmp_path / "vil small.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(found[name], tensors[name]) for name in tensors)


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nothing.safetensors does not exist"):
        read_checkpoint(tmp_path / "nothing.safetensors")
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"cut.safetensors is not a readable"):
        read_checkpoint(path)


def convolutions() -> dict[str, Tensor]:
    """Those of a trunk and one more, by the names that `read_checkpoint` gives them."""
    trunk = MobileTrunk().state_dict()
    tensors = {}
    for number, (weight, bias) in enumerate(
        zip(list(trunk.values())[::2], list(trunk.values())[1::2], strict=True), start=1
    ):
        tensors[f"convolution {number}.weight"] = torch.randn_like(weight)
        tensors[f"convolution {number}.bias"] = torch.randn_like(bias)
    return tensors | {f"convolution {number + 1}.weight": torch.randn(256, 112, 1, 1)}


@pytest.fixture(scope="module")
def mobile(config: ModelConfig) -> ViLTracker:
    return ViLTracker(replace(config, stem="mobile", stem_channels=(), match_width=0))


def test_a_mobile_stem_takes_the_trunk_of_an_onnx_network(mobile: ViLTracker) -> None:
    tensors = convolutions()
    state, report = from_published(tensors, mobile)
    prefix = "backbone.embedding.stem.trunk."
    filled = [tensor for name, tensor in state.items() if name.startswith(prefix)]
    for made, published in zip(filled, list(tensors.values())[:-1], strict=True):
        assert torch.equal(made, published)
    (beyond,) = report.left
    assert beyond == list(tensors)[-1]
    assert set(report.taken) == set(tensors) - {beyond}
    assert set(report.fresh) == {name for name in state if not name.startswith(prefix)}
    for name in report.fresh:
        assert torch.equal(state[name], mobile.state_dict()[name])
    assert ("convolution N.weight", 16) in {(name, count) for name, _, count in report.rows()}


def test_a_matcher_takes_what_follows_the_trunk(config: ModelConfig) -> None:
    net = ViLTracker(replace(config, stem="mobile", stem_channels=()))
    matcher = net.backbone.embedding.matcher
    assert matcher is not None
    tensors = convolutions()
    number = len(tensors) // 2  # the last has no bias
    del tensors[f"convolution {number + 1}.weight"]
    published = []
    for layer in PUBLISHED:
        number += 1
        for part in ("weight", "bias"):
            name = f"backbone.embedding.matcher.{layer}.{part}"
            if name in net.state_dict():
                tensors[f"convolution {number}.{part}"] = torch.randn_like(net.state_dict()[name])
                published.append((name, f"convolution {number}.{part}"))
    state, report = from_published(tensors, net)
    assert len(published) == 16
    for ours, theirs in published:
        assert torch.equal(state[ours], tensors[theirs])
        assert report.taken[theirs] == (ours,)
    assert not report.left
    project = "backbone.embedding.matcher.project.weight"
    assert project in report.fresh
    del tensors[f"convolution {number}.bias"]
    with pytest.raises(CheckpointError, match=rf"convolution {number}\.bias is missing"):
        from_published(tensors, net)


def test_an_onnx_network_that_does_not_fit_is_refused(net: ViLTracker, mobile: ViLTracker) -> None:
    tensors = convolutions()
    with pytest.raises(CheckpointError, match="starts a stem 'mobile', that of "):
        from_published(tensors, net)
    wide = tensors | {"convolution 3.weight": torch.ones(7)}
    with pytest.raises(CheckpointError, match=r"convolution 3\.weight is \(7,\), the trunk's is"):
        from_published(wide, mobile)


def test_an_onnx_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.onnx"
    path.write_bytes(b"\xff\xfe no network")
    with pytest.raises(CheckpointError, match=r"cut\.onnx is not a readable ONNX network"):
        read_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"cut\.onnx holds no convolution"):
        read_checkpoint(path)
