"""What a run says of itself: files of lines, TensorBoard and a bar or, in a file, lines."""

from __future__ import annotations

import json
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard.writer import SummaryWriter

from vil_tracker_core.training.config import TrainConfig

LOG, HELD = "log.jsonl", "held.jsonl"
EVERY = 20
"""Steps between two reports."""

LINE_SECONDS = 15.0
"""Least time between two lines where there is no terminal to draw a bar in."""


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


class Journal:
    """Takes note of every step; used as a context.

    Args:
        out: the run's folder.
        config: the run.
        first: steps done before. What a killed run noted after its last checkpoint is dropped.
        console: where progress is shown.
    """

    def __init__(self, out: Path, config: TrainConfig, first: int, console: Console) -> None:
        self.config, self.console, self.first = config, console, first
        path = out / LOG
        if path.is_file():
            path.write_text("".join(path.read_text().splitlines(keepends=True)[:first]))
        self._log = path.open("a")
        self._held = out / HELD
        if self._held.is_file():
            lines = self._held.read_text().splitlines(keepends=True)
            kept = [line for line in lines if json.loads(line)["step"] <= first]
            self._held.write_text("".join(kept))
        self._board = SummaryWriter(str(out / "tensorboard"), purge_step=first + 1)
        self._waited = self._worked = 0.0
        self._reported = first
        self._started = self._said = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self._bar.add_task("training", total=config.steps, completed=first, note="")

    def __enter__(self) -> Journal:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self._bar.stop()
        self._log.close()
        self._board.close()

    def add(
        self,
        step: int,
        losses: dict[str, float],
        course: dict[str, float],
        waited: float,
        worked: float,
    ) -> None:
        """One step.

        Args:
            step: its number, from 1.
            losses: what it cost.
            course: what steers the run (learning rate, difficulty, ...).
            waited, worked: seconds that it waited for data and computed.
        """
        self._log.write(json.dumps({"step": step, **_rounded(losses)}) + "\n")
        self._waited += waited
        self._worked += worked
        self._bar.update(self._task, completed=step)
        if step % EVERY == 0 or step == self.config.steps:
            self._report(step, losses, course)

    def checked(self, step: int, overlap: float) -> None:
        """A checkpoint after that many steps, and its overlap on what the run holds out."""
        with self._held.open("a") as file:
            file.write(json.dumps({"step": step, **_rounded({"overlap": overlap})}) + "\n")
        self._board.add_scalar("held/overlap", overlap, step)
        line = f"checkpoint after step {step}: overlap {overlap:.3f} on what is held out"
        self.console.print(line, highlight=False, soft_wrap=True)

    def _report(self, step: int, losses: dict[str, float], course: dict[str, float]) -> None:
        spent = max(self._waited + self._worked, 1e-9)
        clips = (step - self._reported) * self.config.batch * self.config.accumulate
        speed = {"clips_per_second": clips / spent, "waiting_share": self._waited / spent}
        for group, values in (("loss", losses), ("course", course), ("speed", speed)):
            for name, value in values.items():
                self._board.add_scalar(f"{group}/{name}", value, step)
        self._log.flush()
        note = (
            f"loss {losses['total']:.3f}, overlap {losses['overlap']:.3f}, "
            f"{speed['clips_per_second']:.1f} clips/s, "
            f"waiting for data {speed['waiting_share']:.0%}, "
            f"computing {1 - speed['waiting_share']:.0%}"
        )
        self._bar.update(self._task, note=note)
        self._say(step, note)
        self._waited = self._worked = 0.0
        self._reported = step

    def _say(self, step: int, note: str) -> None:
        """A line where no bar is drawn; not of every report."""
        now = time.monotonic()
        first, last = self._reported == self.first, step == self.config.steps
        if self.console.is_terminal or not (first or last or now - self._said > LINE_SECONDS):
            return
        left = (now - self._started) / (step - self.first) * (self.config.steps - step)
        line = f"step {step}/{self.config.steps}, {note}, {_clock(left)} left"
        self.console.print(line, highlight=False, soft_wrap=True)
        self._said = now


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 5) for name, value in values.items()}
