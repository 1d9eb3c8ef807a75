"""The training loop, on Hugging Face Accelerate: one process or many, with exact resumption."""

from __future__ import annotations

import math
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from rich.console import Console
from torch import Tensor, nn
from torch.utils.data import DataLoader

from vil_tracker_core import weights
from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.model.presets import ModelConfig
from vil_tracker_core.training import checkpoint, hub
from vil_tracker_core.training.batches import Batch, ShareOfProcess, TaughtClips
from vil_tracker_core.training.checkpoint import Progressed, load_checkpoint, save_checkpoint
from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.held import HeldOut
from vil_tracker_core.training.journal import Journal
from vil_tracker_core.training.optimizer import Ema, learning_rate, parameter_groups
from vil_tracker_core.training.parallel import any_process, process_mean, share_batch_norms
from vil_tracker_core.training.phases import Stage, hold_film, stage_at
from vil_tracker_core.training.provenance import WEIGHTS, describe_run, save_weights
from vil_tracker_core.training.student import Student
from vil_tracker_core.training.teachers import open_teacher

SKIPPED = "skipped.txt"
"""Names the broken images that a run met."""


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


def _leave_signals_to_the_run(worker: int) -> None:
    """What is sent to all processes at once (Ctrl-C, `timeout`, systemd) ends the run after the
    step in hand, and that its workers; one that dies before would be an error."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


def _initial(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The tensors of a weights file; raises WeightsError where they are not of this shape."""
    try:
        return replace(weights.load(path), config=config).build().state_dict()
    except weights.WeightsError as error:
        raise weights.WeightsError(f"init = {path}: {error}") from None


def _student(config: TrainConfig) -> Student:
    """The net as a run begins with it, the same in every process."""
    torch.manual_seed(config.seed)
    student = Student(config)
    if config.init:
        student.tracker.load_state_dict(_initial(config.init, config.model_config_of()))
    if config.compile:
        compiler = os.environ.get("CXX", "g++")
        if shutil.which(compiler) is None:
            raise DataError(
                f"compile = true needs a C++ compiler, and {compiler} was not found: install it, "
                "name another one in CXX, or set compile: false"
            )
        # the blocks share one code: each shape, state and mode of it is a graph of its own
        torch._dynamo.config.cache_size_limit = 64
        for block in student.tracker.backbone.blocks:
            block.compile(dynamic=False)
    return student


@dataclass
class Run:
    """All that a step works on."""

    config: TrainConfig
    out: Path
    accelerator: Accelerator
    clips: TaughtClips
    student: Student
    model: nn.Module  # the student, as Accelerate runs it
    optimizer: torch.optim.Optimizer
    ema: Ema
    at: Progressed

    @classmethod
    def prepare(cls, config: TrainConfig, out: Path, resume: bool) -> Run:
        if config.teacher:  # a bad file is to be known before the first worker opens it
            open_teacher(config.teacher, config.model_config_of())
        accelerator = Accelerator(
            mixed_precision=config.precision,
            cpu=not torch.cuda.is_available(),
            # of a clip's last frame nothing uses what FiLM projects, and it may be the only one
            kwargs_handlers=[
                DistributedDataParallelKwargs(find_unused_parameters=config.frames == 1)
            ],
        )
        clips = TaughtClips(config, out / SKIPPED)
        student = _student(config)
        ema = Ema(student.tracker, config.ema)
        optimizer = torch.optim.AdamW(parameter_groups(student, config), lr=config.lr)
        at = load_checkpoint(out, student, ema, optimizer) if resume else Progressed()
        if accelerator.num_processes > 1:
            share_batch_norms(student)
        model, optimizer = accelerator.prepare(student, optimizer)
        ema.state = {k: v.to(accelerator.device) for k, v in ema.state.items()}
        return cls(config, out, accelerator, clips, student, model, optimizer, ema, at)

    def batches(self) -> Iterator[Batch]:
        """This process's share of every micro-batch that is still to come."""
        config, accelerator = self.config, self.accelerator
        rank, world = accelerator.process_index, accelerator.num_processes
        loader = DataLoader(
            self.clips,
            batch_size=config.batch // world,
            sampler=ShareOfProcess(config, rank, world, self.at.step * config.accumulate),
            num_workers=config.data.workers,
            worker_init_fn=_leave_signals_to_the_run,
            prefetch_factor=4 if config.data.workers else None,
            drop_last=True,
        )
        return iter(loader)

    def backward(self, batch: Batch, micro: int, stage: Stage) -> dict[str, float]:
        """Adds one micro-batch's share to the gradients and to the step's losses, which it returns
        as means over all processes."""
        torch.manual_seed(self.config.seed + 7919 * (self.at.step * self.config.accumulate + micro))
        batch = {name: value.to(self.accelerator.device) for name, value in batch.items()}
        last = micro == self.config.accumulate - 1
        with nullcontext() if last else self.accelerator.no_sync(self.model):
            losses = self.model(batch, stage)
            self.accelerator.backward(losses["total"] / self.config.accumulate)
        means = process_mean(torch.stack([value.detach().float() for value in losses.values()]))
        return {
            name: value / self.config.accumulate
            for name, value in zip(losses, means.tolist(), strict=True)
        }

    def update(self, stage: Stage) -> None:
        """Moves the weights along the gradients, and their average after them."""
        if not stage.film:
            hold_film(self.student.tracker)
        self.accelerator.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update(self.student.tracker, self.at.step)
        self.at.step += 1

    def course(self, stage: Stage) -> dict[str, float]:
        """What steers the run, for the journal."""
        course = {
            "learning_rate": learning_rate(self.config, self.at.step - 1),
            "difficulty": stage.level,
            "film": float(stage.film),
        }
        if self.student.balance is not None:
            balance = self.student.balance
            shares = torch.exp(-balance.log_var.detach()).tolist()
            course |= {f"weight_{n}": w for n, w in zip(balance.names, shares, strict=True)}
        return course

    def keep(self, seconds: float) -> None:
        """A checkpoint and the weights so far, by the first process alone."""
        self.at.seconds = seconds
        if self.accelerator.is_main_process:
            save_checkpoint(self.out, self.student, self.ema, self.optimizer, self.at)
            described = describe_run(self.config, self.clips.clips, self.at)
            save_weights(self.out, self.config, self.ema, described)


@dataclass
class Report:
    """What the first process tells of a run."""

    journal: Journal
    held: HeldOut

    def checkpoint(self, run: Run) -> None:
        overlap = self.held.overlap(run.student, run.ema)
        if overlap is not None:
            self.journal.checked(run.at.step, overlap)


def _steps(run: Run, report: Report | None, stop: _Stop) -> None:
    """Takes steps until the run is over or a signal asks any process to stop."""

    def keep() -> None:
        run.keep(time.monotonic() - started)
        if report is not None:
            report.checkpoint(run)

    config, at = run.config, run.at
    started, saved = time.monotonic() - at.seconds, time.monotonic()
    batches = run.batches()
    while at.step < config.steps and not any_process(stop.asked, run.accelerator.device):
        stage = stage_at(config, at.step)
        for group in run.optimizer.param_groups:
            group["lr"] = group["lr_share"] * learning_rate(config, at.step)
        began, waited = time.monotonic(), 0.0
        sums: dict[str, float] = {}
        for micro in range(config.accumulate):
            tick = time.monotonic()
            batch = next(batches)
            waited += time.monotonic() - tick
            for name, value in run.backward(batch, micro, stage).items():
                sums[name] = sums.get(name, 0.0) + value
        if not math.isfinite(sums["total"]):
            raise FloatingPointError(
                f"step {at.step + 1}: the loss is not finite: lower lr or clip_norm and "
                f"resume from the last checkpoint in {run.out}"
            )
        run.update(stage)
        if report is not None:
            worked = time.monotonic() - began - waited
            report.journal.add(at.step, sums, run.course(stage), waited, worked)
        if time.monotonic() - saved > 60 * config.checkpoint_minutes:
            keep()
            saved = time.monotonic()
    keep()


def train(config: TrainConfig, out: Path, resume: bool = False) -> Path:
    """Trains and returns the weights file (the EMA's), in ``out``.

    Args:
        config: the run.
        out: folder for checkpoint.safetensors, weights.safetensors, run.json, log.jsonl, held.jsonl
            (where sequences are held out) and TensorBoard's events.
        resume: go on from the checkpoint in ``out``.
    """
    if not resume and (out / checkpoint.FILE).exists():
        raise DataError(f"{out} holds a run already: resume it or choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    if not resume:
        (out / SKIPPED).unlink(missing_ok=True)
    console = Console(file=sys.stderr)
    run = Run.prepare(config, out, resume)
    publishes = config.hub is not None and run.accelerator.is_main_process
    if config.hub and publishes:  # a wrong name or token is to be known before days of training
        hub.prepare(config.hub)
    stop = _Stop()
    with ExitStack() as stack:
        stack.enter_context(stop)
        report = None
        if run.accelerator.is_main_process:
            report = Report(Journal(out, config, run.at.step, console), HeldOut(config))
            stack.enter_context(report.journal)
        try:
            _steps(run, report, stop)
        except BaseException as error:
            # Lets go of the loader, which then ends its workers. At exit Python would end them by
            # SIGTERM, which they ignore, and wait for them without end.
            traceback.clear_frames(error.__traceback__)
            raise
    if run.at.step < config.steps and run.accelerator.is_main_process:
        console.print(f"stopped after step {run.at.step} of {config.steps}: --resume goes on")
    broken = run.clips.clips.skipped.reasons()
    if broken and run.accelerator.is_main_process:
        console.print(f"{len(broken)} images could not be read, see {out / SKIPPED}: {broken[0]}")
    if config.hub and publishes and run.at.step == config.steps:
        hub.push(config.hub, out)
    run.accelerator.end_training()
    return out / WEIGHTS
