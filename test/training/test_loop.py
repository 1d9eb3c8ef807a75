"""The training loop: a tiny run learns, stops when asked, and goes on as if it never had."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partialmethod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch._dynamo.backends.debugging import aot_eager
from torch.fx import GraphModule

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.training.checkpoint import load_checkpoint
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.loop import train
from vil_tracker_core.training.optimizer import Ema, parameter_groups
from vil_tracker_core.training.student import Student

MakeConfig = Callable[..., TrainConfig]
BatchOf = Callable[..., dict[str, Tensor]]
SIGNALS = (signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """A failing test must not leave the next one with a run's signal handlers."""
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


def logged(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def naming(name: str) -> Callable[[str], str]:
    """Puts a tensor's name before what is said about it."""
    return lambda text: f"{name}: {text}"


def interrupt_after(monkeypatch: pytest.MonkeyPatch, step: int, number: int) -> None:
    """The process gets a real signal at the end of a step."""
    update = Ema.update

    def updating(ema: Ema, module: nn.Module, at: int) -> None:
        update(ema, module, at)
        if at + 1 == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Ema, "update", updating)


def test_run_makes_weights_log_and_provenance(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=3, frames=2)
    before = [signal.getsignal(number) for number in SIGNALS]
    path = train(config, tmp_path / "new" / "run")
    assert [signal.getsignal(number) for number in SIGNALS] == before

    out = path.parent
    assert {p.name for p in out.iterdir()} == {
        "checkpoint.safetensors",
        "weights.safetensors",
        "run.json",
        "log.jsonl",
        "held.jsonl",
        "tensorboard",
    }
    lines = logged(out)
    assert [line["step"] for line in lines] == [1, 2, 3]
    for line in lines:
        assert set(line) == {"step", "focal", "giou", "l1", "nll", "total", "overlap"}
        assert all(math.isfinite(value) for value in line.values())
    made = weights.load(path)
    assert made.config == preset("vil_tiny")
    assert made.provenance["step"] == 3
    assert made.provenance["config"]["data"]["hold_out"] == ["held"]
    assert made.provenance["seed"] == config.seed
    assert made.provenance["seconds"] > 0
    assert made.provenance["data"]["clips"] == 12
    assert json.loads((out / "run.json").read_text()) == made.provenance
    assert not made.build().training


@pytest.mark.parametrize("number", SIGNALS)
def test_resumed_equals_unbroken(
    make_config: MakeConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
) -> None:
    """Through the start of FiLM and under the curriculum, with all that a run can carry."""
    config = make_config(
        steps=4,
        frames=2,
        accumulate=2 if number == signal.SIGINT else 1,
        difficulty_from=0.0,
        difficulty_steps=3,
        film_from=1 if number == signal.SIGINT else 3,
        freeze_shared_experts=number == signal.SIGTERM,
        adaptive_losses=True,
        losses={"contrastive": 0.5},
    )
    train(config, tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, number)
        train(config, tmp_path / "parts")
    assert [line["step"] for line in logged(tmp_path / "parts")] == [1, 2]
    assert "stopped after step 2 of 4" in capsys.readouterr().err
    assert weights.load(tmp_path / "parts" / "weights.safetensors").provenance["step"] == 2

    train(config, tmp_path / "parts", resume=True)
    whole, parts = logged(tmp_path / "whole"), logged(tmp_path / "parts")
    assert len(whole) == len(parts) == 4
    for one, two in zip(whole, parts, strict=True):
        assert one == pytest.approx(two, abs=1e-6)
    assert weights.load(tmp_path / "parts" / "weights.safetensors").provenance["step"] == 4
    one, two = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("whole", "parts"))
    assert set(one) == set(two)
    for name, value in one.items():  # the student, its average and the optimiser's
        torch.testing.assert_close(value, two[name], rtol=0, atol=1e-6, msg=naming(name))


def started(config: TrainConfig, out: Path) -> subprocess.Popen[str]:
    """A run in a process of its own, which leads a session."""
    code = (
        "import sys; from pathlib import Path; from vil_tracker_core.training.loop import train; "
        "from vil_tracker_core.training.config import TrainConfig; "
        "train(TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2]))"
    )
    return subprocess.Popen(
        [sys.executable, "-c", code, config.model_dump_json(), str(out)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_to_all_processes_stops_the_run_with_a_checkpoint(
    make_config: MakeConfig, tmp_path: Path, number: int
) -> None:
    """As `timeout` and a terminal's Ctrl-C send it: to the loader's worker as well."""
    config = make_config(steps=10_000, data={"workers": 1})
    run = started(config, tmp_path / "run")
    try:
        log = tmp_path / "run" / "log.jsonl"
        until = time.monotonic() + 120
        while time.monotonic() < until and not (log.exists() and len(logged(log.parent)) > 2):
            time.sleep(0.1)
        os.killpg(run.pid, number)
        said = run.communicate(timeout=60)[1]
    finally:
        run.kill()
    assert run.returncode == 0, said
    assert f"stopped after step {len(logged(log.parent))} of 10000" in said
    assert (tmp_path / "run" / "checkpoint.safetensors").is_file()


def test_log_after_a_crash_names_each_step_once(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The log went on after the last checkpoint; the resumed run does those steps again."""
    config = make_config(steps=4)
    with monkeypatch.context() as patch:
        interrupt_after(patch, 2, signal.SIGTERM)
        train(config, tmp_path)
    with (tmp_path / "log.jsonl").open("a") as log:
        log.write(json.dumps({"step": 3, "total": 1.0}) + "\n" + '{"step": 4, "to')
    train(config, tmp_path, resume=True)
    lines = logged(tmp_path)
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert "focal" in lines[2]


def test_nothing_to_resume_is_named(make_config: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"checkpoint\.safetensors does not exist"):
        train(make_config(), tmp_path / "nowhere", resume=True)


def test_new_run_does_not_write_over_an_old_one(make_config: MakeConfig, tmp_path: Path) -> None:
    config = make_config(steps=1)
    path = train(config, tmp_path)
    before = path.read_bytes()
    with pytest.raises(DataError, match="resume"):
        train(config, tmp_path)
    assert path.read_bytes() == before


def test_accumulated_gradient_is_the_mean_over_micro_batches(
    make_config: MakeConfig, batch_of: BatchOf, tmp_path: Path
) -> None:
    """AdamW's first average is a tenth of the gradient that it got."""
    config = make_config(steps=1, batch=2, accumulate=2, clip_norm=1e9)
    train(config, tmp_path)
    torch.manual_seed(config.seed)
    student = Student(config)
    for micro in range(2):
        (student(batch_of(config, micro))["total"] / 2).backward()

    torch.manual_seed(9)
    restored = Student(config)
    groups = parameter_groups(restored, config)
    optimizer = torch.optim.AdamW(groups, lr=1e-3)
    load_checkpoint(tmp_path, restored, Ema(restored.tracker, 0.9), optimizer)
    names = {id(parameter): name for name, parameter in restored.named_parameters()}
    wanted = dict(student.named_parameters())
    for group in groups:
        for parameter in group["params"]:
            name = names[id(parameter)]
            gradient = wanted[name].grad
            if gradient is None:
                continue
            got = optimizer.state[parameter]["exp_avg"]
            torch.testing.assert_close(
                got,
                0.1 * gradient,
                rtol=1e-3,
                atol=1e-6,
                msg=naming(name),
            )


def test_compiled_run_learns_what_a_plain_one_does(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced and differentiated as ever, but not made into C++, which takes two minutes."""
    traced: list[str] = []

    def backend(graph: GraphModule, inputs: list[Tensor]) -> Callable[..., object]:
        traced.append(type(graph).__name__)
        return aot_eager(graph, inputs)

    train(make_config(steps=2, frames=2), tmp_path / "plain")
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend=backend))
    train(make_config(steps=2, frames=2, compile=True), tmp_path / "compiled")
    assert traced
    for one, two in zip(logged(tmp_path / "plain"), logged(tmp_path / "compiled"), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-4)


def test_compiled_run_without_a_compiler_is_refused(
    make_config: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(DataError, match="no-such-compiler was not found"):
        train(make_config(steps=1, compile=True), tmp_path / "run")


@pytest.mark.parametrize("kind", ["fear_xs", "nanotrack"])
def test_run_with_a_teacher(
    make_config: MakeConfig, tmp_path: Path, kind: str, fear_folder: Path, nano_folder: Path
) -> None:
    folder = {"fear_xs": fear_folder, "nanotrack": nano_folder}[kind]
    teacher = {"kind": kind, "folder": folder, "block": 2, "score_weight": 0.5, "box_weight": 0.5}
    path = train(make_config(steps=2, teacher=teacher), tmp_path)
    for line in logged(tmp_path):
        assert 0 <= line["distill_features"] <= 2
        assert line["distill_score"] >= 0
        assert line["distill_boxes"] >= 0
    assert not any("distillation" in name for name in weights.load(path).tensors)


def test_teacher_that_is_missing_is_named_before_anything_is_made(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    teacher = {"kind": "nanotrack", "folder": tmp_path / "nowhere", "block": 2}
    with pytest.raises(DataError, match=r"nanotrack_backbone\.onnx is missing"):
        train(make_config(teacher=teacher), tmp_path / "run")


def test_run_starts_from_given_weights(make_config: MakeConfig, tmp_path: Path) -> None:
    torch.manual_seed(5)
    start = ViLTracker(preset("vil_tiny"))
    weights.save(tmp_path / "start.safetensors", weights.Weights(start.config, start.state_dict()))
    config = make_config(steps=1, lr=1e-9, init=tmp_path / "start.safetensors")
    made = weights.load(train(config, tmp_path / "run")).tensors
    for name, parameter in start.named_parameters():
        torch.testing.assert_close(
            made[name],
            parameter.detach(),
            rtol=1e-3,  # the file holds half precision
            atol=1e-6,
            msg=naming(name),
        )


def test_start_that_does_not_fit_is_refused(make_config: MakeConfig, tmp_path: Path) -> None:
    other = ViLTracker(replace(preset("vil_tiny"), dim=48))
    path = tmp_path / "other.safetensors"
    weights.save(path, weights.Weights(other.config, other.state_dict()))
    with pytest.raises(weights.WeightsError, match=r"other\.safetensors"):
        train(make_config(init=path), tmp_path / "run")
    with pytest.raises(weights.WeightsError, match=r"gone\.safetensors"):
        train(make_config(init=tmp_path / "gone.safetensors"), tmp_path / "run")


def test_run_that_diverges_stops_and_keeps_its_weights_finite(
    make_config: MakeConfig, tmp_path: Path
) -> None:
    config = make_config(steps=4, warmup=0, lr=1e30)
    with pytest.raises(ArithmeticError, match=r"step \d.*not finite"):
        train(config, tmp_path)
    assert not (tmp_path / "weights.safetensors").exists()


def test_run_that_fails_ends_with_its_workers(make_config: MakeConfig, tmp_path: Path) -> None:
    """They take no notice of the signal by which Python ends what is left at its exit."""
    run = started(make_config(steps=4, warmup=0, lr=1e30, data={"workers": 1}), tmp_path / "run")
    try:
        said = run.communicate(timeout=120)[1]  # not before its workers have closed it too
    finally:
        run.kill()
    assert run.returncode == 1
    assert "not finite" in said


def test_broken_images_are_skipped_and_named(
    make_config: MakeConfig,
    training_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    whole = training_folder / "still" / "0.jpg"
    (tmp_path / "still").mkdir()
    (tmp_path / "still" / "good.jpg").write_bytes(whole.read_bytes())
    (tmp_path / "still" / "cut_short.jpg").write_bytes(whole.read_bytes()[:300])
    data = {"stills": [tmp_path / "still"], "video_weight": 0, "boxed_weight": 0, "workers": 1}
    train(make_config({**data, "composite_weight": 0}, steps=2), tmp_path / "run")
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(run["data"]["skipped"]) == 1
    assert "cut_short.jpg" in run["data"]["skipped"][0]
    assert "cut_short.jpg" in (tmp_path / "run" / "skipped.txt").read_text()
    assert "1 images could not be read" in capsys.readouterr().err
