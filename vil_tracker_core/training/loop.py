"""The training loop, on Hugging Face Accelerate: one process or many, with exact resumption."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType
from typing import Any

import cv2
import numpy as np
import torch
from accelerate import Accelerator
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.distill import FeatureDistillation, OnnxTeacher
from vil_tracker_core.training.losses import tracking_losses
from vil_tracker_core.training.sources import clip_dataset

Batch = dict[str, Tensor]


class Student(nn.Module):
    """The tracker and what only training needs; its forward pass gives the losses."""

    def __init__(self, config: TrainConfig, teacher_channels: int) -> None:
        super().__init__()
        self.config = config
        # channels last: the layout of tokens; halves the time of the convolutions' backward pass
        self.tracker = ViLTracker(config.model_config_of())
        self.tracker.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.distillation = (
            FeatureDistillation(self.tracker.config.dim, teacher_channels)
            if teacher_channels
            else None
        )

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Each loss, unweighted, as a mean over the clip's frames, and `total`."""
        teacher = self.config.teacher
        steps = self.tracker.forward_clip(
            batch["template"].float(),
            batch["search"].float(),
            batch["motion"],
            tap=teacher.block if teacher else None,
        )
        frames = [
            tracking_losses(step.prediction, batch["box"][:, k], batch["visible"][:, k])
            for k, step in enumerate(steps)
        ]
        losses = {name: torch.stack([f[name] for f in frames]).mean() for name in frames[0]}
        total = sum(
            (getattr(self.config.losses, name) * value for name, value in losses.items()),
            torch.zeros((), device=batch["box"].device),
        )
        if teacher and self.distillation is not None:
            learned = [
                self.distillation(step.tapped, batch["wanted"][:, k])
                for k, step in enumerate(steps)
                if step.tapped is not None
            ]
            losses["distill"] = torch.stack(learned).mean()
            total = total + teacher.weight * losses["distill"]
        return {**losses, "total": total}


class TaughtClips(Dataset[Batch]):
    """Clips as tensors, with the teacher's features of each search crop where there is one."""

    def __init__(self, config: TrainConfig) -> None:
        self.clips = clip_dataset(config)
        self.config = config
        self._teacher: OnnxTeacher | None = None

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: int) -> Batch:
        cv2.setNumThreads(1)
        clip = self.clips[index]
        batch = {name: torch.from_numpy(np.ascontiguousarray(v)) for name, v in clip.items()}
        if self.config.teacher:
            if self._teacher is None:  # one session a worker: sessions do not survive a fork
                self._teacher = OnnxTeacher(self.config.teacher.path, self.config.teacher.tensor)
            wanted = [self._teacher.features(search) for search in clip["search"]]
            batch["wanted"] = torch.from_numpy(np.stack(wanted))
        return batch


class ShareOfProcess(Sampler[int]):
    """The clips of one process, in order, from a step on: every process knows all the others'."""

    def __init__(self, config: TrainConfig, rank: int, world: int, first_micro: int) -> None:
        self.batch, self.rank, self.world = config.batch, rank, world
        self.first = first_micro
        self.count = config.steps * config.accumulate
        if config.batch % world:
            raise DataError(f"batch {config.batch} is not a multiple of the {world} processes")

    def __iter__(self) -> Iterator[int]:
        share = self.batch // self.world
        for micro in range(self.first, self.count):
            start = micro * self.batch + self.rank * share
            yield from range(start, start + share)

    def __len__(self) -> int:
        return (self.count - self.first) * self.batch // self.world


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """AdamW's groups: matrices decay, FiLM's at their own rate; biases, norms, gains never do."""
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        matrix = parameter.dim() >= 2 and "position" not in name
        decay = config.film_weight_decay if ".film." in name else config.weight_decay
        groups.setdefault(decay if matrix else 0.0, []).append(parameter)
    return [{"params": params, "weight_decay": decay} for decay, params in groups.items()]


def learning_rate(config: TrainConfig, step: int) -> float:
    """Linear warm-up, then half a cosine to a hundredth."""
    if step < config.warmup:
        return config.lr * (step + 1) / config.warmup
    share = (step - config.warmup) / max(config.steps - config.warmup, 1)
    return config.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * share)))


class Ema:
    """An exponential moving average of a module's state, whole buffers copied."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.state = {k: v.detach().clone() for k, v in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        decay = min(self.decay, (1 + step) / (10 + step))  # the first steps are forgotten sooner
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value, 1 - decay)
            else:
                self.state[name].copy_(value)


@dataclass
class Progressed:
    """What a checkpoint knows beside tensors."""

    step: int = 0
    seconds: float = 0.0


def _flat_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    state = optimizer.state_dict()["state"]
    return {f"{index}.{key}": value for index, item in state.items() for key, value in item.items()}


def _load_optimizer(optimizer: torch.optim.Optimizer, flat: dict[str, Tensor]) -> None:
    whole = optimizer.state_dict()
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in flat.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimizer.load_state_dict({**whole, "state": state})


def save_checkpoint(
    folder: Path, student: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer, at: Progressed
) -> None:
    """One file, written under a temporary name and renamed: a crash leaves the old one whole."""
    tensors = {f"student.{k}": v for k, v in student.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in ema.state.items()}
    tensors |= {f"optimizer.{k}": v for k, v in _flat_optimizer(optimizer).items()}
    temporary = folder / "checkpoint.safetensors.part"
    save_file(
        {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
        temporary,
        {"progress": json.dumps(vars(at))},
    )
    temporary.replace(folder / "checkpoint.safetensors")


def load_checkpoint(
    folder: Path, student: nn.Module, ema: Ema, optimizer: torch.optim.Optimizer
) -> Progressed:
    """Restores all that `save_checkpoint` kept."""
    path = folder / "checkpoint.safetensors"
    if not path.is_file():
        raise DataError(f"{path} does not exist: there is nothing to resume")
    try:
        with safe_open(str(path), framework="pt") as file:
            at = Progressed(**json.loads(file.metadata()["progress"]))
        tensors = load_file(path)
    except SafetensorError as error:
        raise DataError(f"{path} is damaged and cannot be resumed: {error}") from None
    parts: dict[str, dict[str, Tensor]] = {"student": {}, "ema": {}, "optimizer": {}}
    for name, value in tensors.items():
        part, key = name.split(".", 1)
        parts[part][key] = value
    expected = {name: value.shape for name, value in student.state_dict().items()}
    if {name: value.shape for name, value in parts["student"].items()} != expected:
        raise DataError(f"{path} is of another model or teacher than this run: it does not fit")
    student.load_state_dict(parts["student"])
    ema.state = parts["ema"]
    _load_optimizer(optimizer, parts["optimizer"])
    return at


def _commit() -> str:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,  # this code's commit, not that of the folder we stand in
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return done.stdout.strip()


class _Stop:
    """While entered, SIGTERM and SIGINT end the run after the step in hand, with a checkpoint."""

    def __init__(self) -> None:
        self.asked = False

    def __enter__(self) -> None:
        self.before = {
            number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGINT)
        }

    def __exit__(self, *exception: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True


def _initial(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a weights file; raises WeightsError where they are not of this shape."""
    try:
        return replace(weights.load(path), config=config).build().state_dict()
    except weights.WeightsError as error:
        raise weights.WeightsError(f"init = {path}: {error}") from None


def _cut_log(path: Path, steps: int) -> None:
    """Drops what a killed run logged after its last checkpoint: those steps are done again."""
    if path.is_file():
        path.write_text("".join(path.read_text().splitlines(keepends=True)[:steps]))


def train(config: TrainConfig, out: Path, resume: bool = False) -> Path:
    """Trains and returns the weights file (the EMA's), in ``out``.

    Args:
        config: the run.
        out: folder for checkpoint.safetensors, weights.safetensors, run.json and log.jsonl.
        resume: go on from the checkpoint in ``out``.
    """
    if not resume and (out / "checkpoint.safetensors").exists():
        raise DataError(f"{out} holds a run already: resume it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    accelerator = Accelerator(
        mixed_precision=config.precision,
        cpu=not torch.cuda.is_available(),
    )
    torch.manual_seed(config.seed)
    teacher_channels = 0
    if config.teacher:
        teacher_channels = OnnxTeacher(config.teacher.path, config.teacher.tensor).channels
    student = Student(config, teacher_channels)
    if config.init:
        student.tracker.load_state_dict(_initial(config.init, config.model_config_of()))
    if config.compile:
        # the blocks share one code: each shape, state and mode of it is a graph of its own
        torch._dynamo.config.cache_size_limit = 64
        for block in student.tracker.backbone.blocks:
            block.compile(dynamic=False)
    ema = Ema(student.tracker, config.ema)
    optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=config.lr)
    at = load_checkpoint(out, student, ema, optimizer) if resume else Progressed()
    model, optimizer = accelerator.prepare(student, optimizer)
    ema.state = {k: v.to(accelerator.device) for k, v in ema.state.items()}

    sampler = ShareOfProcess(
        config, accelerator.process_index, accelerator.num_processes, at.step * config.accumulate
    )
    loader = DataLoader(
        TaughtClips(config),
        batch_size=config.batch // accelerator.num_processes,
        sampler=sampler,
        num_workers=config.data.workers,
        prefetch_factor=4 if config.data.workers else None,
        drop_last=True,
    )
    stop = _Stop()
    if accelerator.is_main_process:
        _cut_log(out / "log.jsonl", at.step)
    started, saved = time.monotonic() - at.seconds, time.monotonic()
    log = (out / "log.jsonl").open("a") if accelerator.is_main_process else None

    def keep() -> None:
        at.seconds = time.monotonic() - started
        if accelerator.is_main_process:
            plain = accelerator.unwrap_model(model)
            save_checkpoint(out, plain, ema, optimizer, at)
            save_weights(out, config, ema, at)

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with stop, Progress(*columns, disable=not accelerator.is_main_process) as progress:
        task = progress.add_task("training", total=config.steps, completed=at.step, note="")
        batches = iter(loader)
        waited, worked = 0.0, 0.0
        while at.step < config.steps and not stop.asked:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, at.step)
            sums: dict[str, float] = {}
            for micro in range(config.accumulate):
                torch.manual_seed(config.seed + 7919 * (at.step * config.accumulate + micro))
                tick = time.monotonic()
                batch = {k: v.to(accelerator.device) for k, v in next(batches).items()}
                waited, tick = waited + time.monotonic() - tick, time.monotonic()
                last = micro == config.accumulate - 1
                with nullcontext() if last else accelerator.no_sync(model):
                    losses = model(batch)
                    accelerator.backward(losses["total"] / config.accumulate)
                for name, value in losses.items():
                    sums[name] = sums.get(name, 0.0) + float(value.detach()) / config.accumulate
            if not math.isfinite(sums["total"]):
                raise FloatingPointError(
                    f"step {at.step + 1}: the loss is not finite: lower lr or clip_norm and "
                    f"resume from the last checkpoint in {out}"
                )
            accelerator.clip_grad_norm_(model.parameters(), config.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
            ema.update(accelerator.unwrap_model(model).tracker, at.step)
            worked += time.monotonic() - tick
            at.step += 1
            if log is not None:
                record = {"step": at.step, **{k: round(v, 5) for k, v in sums.items()}}
                log.write(json.dumps(record) + "\n")
            if at.step % 20 == 0:
                rate = 20 * config.batch * config.accumulate / (waited + worked)
                note = f"loss {sums['total']:.3f}, {rate:.1f} clips/s, "
                note += f"waiting for data {waited / (waited + worked):.0%}"
                progress.update(task, note=note)
                if log is not None:
                    log.flush()
                waited, worked = 0.0, 0.0
            progress.update(task, completed=at.step)
            if time.monotonic() - saved > 60 * config.checkpoint_minutes:
                keep()
                saved = time.monotonic()
        keep()
    if log is not None:
        log.close()
    accelerator.end_training()
    return out / "weights.safetensors"


def save_weights(out: Path, config: TrainConfig, ema: Ema, at: Progressed) -> None:
    """The EMA's weights in half precision with their provenance, which run.json repeats."""
    provenance = {
        "config": config.model_dump(mode="json"),
        "step": at.step,
        "seconds": round(at.seconds),
        "commit": _commit(),
        "torch": torch.__version__,
    }
    tensors = {
        k: v.detach().cpu().half() if v.is_floating_point() else v.detach().cpu().clone()
        for k, v in ema.state.items()
    }
    weights.save(
        out / "weights.safetensors",
        weights.Weights(config.model_config_of(), tensors, provenance=provenance),
    )
    (out / "run.json").write_text(json.dumps(provenance, indent=1) + "\n")
