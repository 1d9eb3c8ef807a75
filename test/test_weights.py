"""Weights files: what is written comes back, and nothing damaged or foreign is taken for one."""

from __future__ import annotations

import json
import pickle
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from vil_tracker_core import weights
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.weights import Calibration, Weights, WeightsError, expected_tensors

CONFIG = ModelConfig(
    name="smallest",
    template_size=16,
    search_size=32,
    dim=8,
    depth=2,
    tmoe_blocks=0,
    heads=1,
    scan="regional",
    film_every=2,
    film_hidden=2,
    head_channels=4,
    uncertainty_channels=4,
)


@pytest.fixture
def net() -> Weights:
    torch.manual_seed(0)
    return Weights(
        CONFIG,
        ViLTracker(CONFIG).state_dict(),
        Calibration((1.5, 1.25, 0.5, 2.0), (0.3, 0.7), 0.2, "three videos"),
        {"steps": 100, "data": ["a", "b"], "loss": 0.25},
    )


@pytest.fixture
def path(net: Weights, tmp_path: Path) -> Path:
    path = tmp_path / "net.safetensors"
    weights.save(path, net)
    return path


def header(path: Path) -> tuple[dict[str, Any], bytes]:
    """The file's JSON header and the bytes of its tensors."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def write_raw(path: Path, head: dict[str, Any], data: bytes) -> None:
    text = json.dumps(head).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def refused(path: Path, why: str | None = None) -> None:
    """Loading ends in a sentence that names the file and says ``why``."""
    with pytest.raises(WeightsError, match=why) as caught:
        weights.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_saved_comes_back(net: Weights, path: Path) -> None:
    back = weights.load(path)
    assert (back.config, back.calibration) == (net.config, net.calibration)
    assert back.provenance == net.provenance
    assert back.tensors.keys() == net.tensors.keys()
    for name, tensor in net.tensors.items():
        assert back.tensors[name].dtype == tensor.dtype
        assert back.tensors[name].equal(tensor)


def test_a_built_net_is_the_saved_one(net: Weights, path: Path) -> None:
    model = weights.load(path).build()
    assert not model.training
    assert model.config == CONFIG
    for name, tensor in model.state_dict().items():
        assert tensor.equal(net.tensors[name])


def test_what_a_config_expects_is_what_its_net_has(net: Weights) -> None:
    expected, built = expected_tensors(net.config), ViLTracker(net.config).state_dict()
    assert {name: tensor.shape for name, tensor in expected.items()} == {
        name: tensor.shape for name, tensor in built.items()
    }
    assert all(tensor.is_meta for tensor in expected.values())


def test_opening_a_file_leaves_pytorchs_compiler_alone(path: Path) -> None:
    """Importing it took a third of a tracker's start."""
    opened = f"weights.load(Path({str(path)!r})).build()"
    code = "import sys; from pathlib import Path; from vil_tracker_core import weights; " + opened
    unwanted = "found = {'torch._dynamo', 'sympy'} & set(sys.modules); assert not found, found"
    subprocess.run([sys.executable, "-c", f"{code}; {unwanted}"], check=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_comes_back_as_float32(
    net: Weights, tmp_path: Path, dtype: torch.dtype
) -> None:
    halved = {k: v.to(dtype) if v.is_floating_point() else v for k, v in net.tensors.items()}
    path = tmp_path / "half.safetensors"
    weights.save(path, replace(net, tensors=halved))
    whole = tmp_path / "whole.safetensors"
    weights.save(whole, net)
    assert path.stat().st_size < whole.stat().st_size
    back = weights.load(path)
    for name, tensor in halved.items():
        wanted = torch.float32 if tensor.is_floating_point() else tensor.dtype
        assert back.tensors[name].dtype == wanted
        assert back.tensors[name].equal(tensor.to(wanted))
    back.build()


def test_views_and_transposed_tensors_can_be_saved(net: Weights, tmp_path: Path) -> None:
    name = "backbone.blocks.0.cell.up.weight"
    turned = net.tensors[name].T.contiguous().T
    path = tmp_path / "net.safetensors"
    weights.save(path, replace(net, tensors={**net.tensors, name: turned}))
    assert weights.load(path).tensors[name].equal(net.tensors[name])


def test_saving_makes_folders_replaces_whole_files_and_leaves_nothing_else(
    net: Weights, tmp_path: Path
) -> None:
    path = tmp_path / "a" / "b" / "net.safetensors"
    weights.save(path, net)
    weights.save(path, replace(net, provenance={"steps": 200}))
    assert weights.load(path).provenance == {"steps": 200}
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_save_leaves_the_old_file(net: Weights, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(TypeError):
        weights.save(path, replace(net, provenance={"when": object()}))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


# -- damage --------------------------------------------------------------------------------------


def test_a_flipped_bit_anywhere_is_refused(path: Path) -> None:
    """Of the metadata every second byte, of all else a few hundred."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    metadata = raw.index(b"__metadata__")
    assert metadata < 20  # it comes first
    data = 8 + length
    places = [*range(8), *range(8, 1600, 2), *range(1600, data, 29), *range(data, len(raw), 301)]
    accepted = []
    for at in places:
        damaged = bytearray(raw)
        damaged[at] ^= 1 << (at % 8)
        path.write_bytes(damaged)
        try:
            refused(path)
        except pytest.fail.Exception:
            accepted.append(at)
    assert accepted == [], bytes(raw[at] for at in accepted)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 100, 0.3, 0.9, -1])
def test_a_truncated_file_is_refused(path: Path, keep: float) -> None:
    raw = path.read_bytes()
    path.write_bytes(raw[: int(keep * len(raw)) if 0 < keep < 1 else int(keep)])
    refused(path, "not a readable safetensors file")


def test_bytes_at_the_end_are_refused(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"x")
    refused(path, "not a readable safetensors file")


def test_a_changed_metadata_value_is_refused(path: Path) -> None:
    """The calibration and the config are as much a part of the net as its tensors."""
    head, data = header(path)
    for key, old, new in (
        ("calibration", "1.25", "9.25"),
        ("config", '"film_keep": 0.7', '"film_keep": 0.9'),
        ("provenance", "100", "900"),
    ):
        metadata = head["__metadata__"]
        assert old in metadata[key]
        changed = {**metadata, key: metadata[key].replace(old, new)}
        write_raw(path, {**head, "__metadata__": changed}, data)
        refused(path, "damaged")


def test_another_type_of_the_same_bytes_is_refused(path: Path) -> None:
    head, data = header(path)
    head["backbone.norm.weight"]["dtype"] = "I32"
    write_raw(path, head, data)
    refused(path, "damaged")


# -- what is no weights file ---------------------------------------------------------------------


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.target,))


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_a_pickle_is_refused_and_never_executed(tmp_path: Path, how: str) -> None:
    path, target = tmp_path / "net.safetensors", tmp_path / "boom"
    if how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(target)))
    else:
        torch.save({"state": Bomb(target)}, path)
    refused(path, "not a readable safetensors file")
    assert not target.exists()
    if how == "pickle":
        pickle.loads(path.read_bytes())  # the bomb is live
        assert target.exists()


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89PNG\r\n\x1a\n" + bytes(100), bytes(64)])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "net.safetensors"
    path.write_bytes(content)
    refused(path, "not a readable safetensors file")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    refused(tmp_path / "net.safetensors", "does not exist")
    refused(tmp_path, "does not exist")


@pytest.mark.parametrize("metadata", [None, {}, {"format": "pt"}, {"format": "vil-tracker-0"}])
def test_anothers_safetensors_are_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    path = tmp_path / "net.safetensors"
    save_file({"a": torch.zeros(3)}, path, metadata)
    refused(path, r"not a weights file of this project \(vil-tracker-1\)")


def test_a_file_too_large_is_refused_before_it_is_read(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = path.stat().st_size
    monkeypatch.setattr(weights, "MAX_BYTES", size)
    weights.load(path)
    monkeypatch.setattr(weights, "MAX_BYTES", size - 1)
    path.write_bytes(bytes(size))
    refused(path, "is larger than")


# -- what does not fit ---------------------------------------------------------------------------

# A file that says of itself it is whole, yet holds a net that cannot be: each is refused when it
# is loaded, before any memory is taken for the net.


def saved(tmp_path: Path, net: Weights) -> Path:
    path = tmp_path / "odd.safetensors"
    weights.save(path, net)
    return path


def test_a_missing_tensor_is_named(net: Weights, tmp_path: Path) -> None:
    tensors = dict(net.tensors)
    del tensors["backbone.norm.weight"]
    with pytest.raises(WeightsError, match=r"1 tensors are missing \['backbone.norm.weight'\]"):
        replace(net, tensors=tensors).build()
    refused(saved(tmp_path, replace(net, tensors=tensors)), "backbone.norm.weight")


def test_an_unknown_tensor_is_named(net: Weights, tmp_path: Path) -> None:
    tensors = {**net.tensors, "extra.weight": torch.zeros(3)}
    with pytest.raises(WeightsError, match=r"1 are unknown \['extra.weight'\]"):
        replace(net, tensors=tensors).build()
    refused(saved(tmp_path, replace(net, tensors=tensors)), "extra.weight")


def test_a_wrong_shape_is_named_with_both_shapes(net: Weights, tmp_path: Path) -> None:
    tensors = {**net.tensors, "backbone.norm.weight": torch.zeros(9)}
    with pytest.raises(WeightsError, match=r"backbone.norm.weight is \(9,\), expected \(8,\)"):
        replace(net, tensors=tensors).build()
    refused(saved(tmp_path, replace(net, tensors=tensors)), r"is \(9,\), expected \(8,\)")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(net: Weights, tmp_path: Path, value: float) -> None:
    bad = net.tensors["backbone.norm.weight"].clone()
    bad[3] = value
    tensors = {**net.tensors, "backbone.norm.weight": bad}
    with pytest.raises(WeightsError, match=r"not finite in backbone\.norm\.weight"):
        replace(net, tensors=tensors).build()
    refused(saved(tmp_path, replace(net, tensors=tensors)), "not finite in backbone.norm.weight")


class OddConfig:
    """Writes whatever it is told to for a config."""

    def __init__(self, values: Any) -> None:
        self.to_dict = lambda: values


@pytest.mark.parametrize(
    "values",
    [
        "text",
        [],
        3,
        None,
        {"dim": 8},
        {"name": "x", "colour": 1},
        *(
            {**CONFIG.to_dict(), **changes}
            for changes in (
                {"patch": 0},
                {"heads": 0},
                {"film_every": 0},
                {"dim": "8"},
                {"stem_channels": 3},
                {"dim": 2**40},
                {"depth": 2**40},
                {"experts": 2**40, "tmoe_blocks": 1},
            )
        ),
    ],
    ids=lambda values: str(values)[-40:],
)
def test_a_config_that_cannot_be_is_refused(net: Weights, tmp_path: Path, values: Any) -> None:
    refused(saved(tmp_path, replace(net, config=OddConfig(values))))


@pytest.mark.parametrize("field", ["spread", "settling"])
@pytest.mark.parametrize("last", [None, "a", -1, 0, float("nan"), float("inf"), True, [1]], ids=str)
def test_a_calibration_that_cannot_be_is_refused(
    net: Weights, tmp_path: Path, field: str, last: Any
) -> None:
    """It scales the variances that a pilot's controller trusts."""
    values: list[Any] = list(getattr(net.calibration, field))
    for odd in (None, 1.0, "1234", values[1:], [*values, 1.0], [*values[1:], last]):
        calibration = replace(net.calibration, **{field: odd})
        refused(saved(tmp_path, replace(net, calibration=calibration)), f"calibration's {field}")
    calibration = replace(net.calibration, drift=last)
    refused(saved(tmp_path, replace(net, calibration=calibration)), "calibration's drift")


def test_an_older_calibration_is_refused() -> None:
    old = {"scale": [1.0, 1.0, 1.0, 1.0], "fitted_on": "a split"}
    with pytest.raises(ValueError, match="its calibration is of an older form"):
        Calibration.from_dict(old)


# -- finding -------------------------------------------------------------------------------------


def test_a_path_is_found_and_a_name_that_is_nothing_is_refused(path: Path) -> None:
    assert weights.find(str(path)) == path
    with pytest.raises(WeightsError, match="'vil_xl' is neither a weights file nor one of"):
        weights.find("vil_xl")


def test_shipped_weights_lie_beside_the_loader() -> None:
    assert weights.shipped("vil_nano").parent == Path(weights.__file__).parent
    assert weights.shipped("vil_nano").name == "vil_nano.safetensors"


def test_the_shipped_weights_are_small_and_of_half_precision() -> None:
    path = weights.shipped("vil_nano")
    assert path.stat().st_size <= 10_000_000
    with safe_open(str(path), framework="pt") as file:
        kinds = {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
    assert "F32" not in kinds


def test_the_shipped_weights_load() -> None:
    loaded = weights.load(weights.find("vil_nano"))
    loaded.build()
    assert loaded.config.name == "vil_nano"
    assert loaded.provenance
