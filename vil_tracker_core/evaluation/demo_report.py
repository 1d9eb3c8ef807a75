"""What the demo saw, as pictures, a table and one page."""

from __future__ import annotations

import csv
import html
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from PIL import Image as Pillow

from vil_tracker_core.evaluation.pictures import TRUTH_COLOUR, draw_box, draw_ellipse, embedded
from vil_tracker_core.geometry import Box, FloatArray, Image, iou
from vil_tracker_core.regions import ellipse_axes

mpl.use("Agg")
from matplotlib import pyplot as plt

STATES = {1: "tracking", 2: "uncertain", 3: "lost"}
COLOURS = {1: (80, 200, 60), 2: (0, 170, 255), 3: (60, 60, 230)}
"""BGR of a box, by state."""
GIF_WIDTH = 400


@dataclass(frozen=True)
class FrameRecord:
    """One frame of a clip and what the node said of it; None where it said nothing.

    ``stamp`` is in ns; ``arrived`` and ``latency`` in seconds, on the receiver's clock.
    """

    stamp: int
    frame: Image
    truth: Box | None
    box: Box | None
    covariance: FloatArray | None
    score: float | None
    state: int | None
    arrived: float | None
    latency: float | None

    @property
    def detected(self) -> bool:
        """The node gave a box and did not call it lost."""
        return self.box is not None and self.state != 3

    @property
    def overlap(self) -> float | None:
        """IoU with the truth; 0 where the target is there and no detection came."""
        if self.truth is None:
            return None
        return float(iou(self.box, self.truth)) if self.detected and self.box else 0.0


@dataclass(frozen=True)
class ClipRun:
    """One clip played through the node."""

    name: str
    records: list[FrameRecord]

    @property
    def tracked(self) -> int:
        return sum(record.detected for record in self.records)

    @cached_property
    def mean_overlap(self) -> float:
        overlaps = [r.overlap for r in self.records if r.overlap is not None]
        return float(np.mean(overlaps)) if overlaps else float("nan")

    @property
    def fps(self) -> float:
        """Answers a second, over the time in which they came."""
        times = sorted(r.arrived for r in self.records if r.arrived is not None)
        if len(times) < 2 or times[-1] <= times[0]:
            return float("nan")
        return (len(times) - 1) / (times[-1] - times[0])

    def latency_ms(self, percentile: float) -> float:
        """From the frame's arrival to the answer's, both in the receiving process."""
        known = [r.latency * 1e3 for r in self.records if r.latency is not None]
        return float(np.percentile(known, percentile)) if known else float("nan")

    def summary(self) -> str:
        """The demo's line for this clip."""
        return (
            f"demo: clip={self.name} frames={len(self.records)} tracked={self.tracked} "
            f"iou={self.mean_overlap:.2f} fps={self.fps:.1f} "
            f"latency_ms_p50={self.latency_ms(50):.1f} latency_ms_p99={self.latency_ms(99):.1f}"
        )


def draw(record: FrameRecord) -> Image:
    """(H, W, 3) BGR frame with the truth (white, thin), the box in its state's colour and the 95 %
    ellipse of its centre."""
    canvas = record.frame.copy()
    if record.truth is not None:
        draw_box(canvas, record.truth, TRUTH_COLOUR, 1)
    if record.box is not None and record.state is not None and record.covariance is not None:
        colour = COLOURS[record.state]
        draw_box(canvas, record.box, colour, 2)
        draw_ellipse(canvas, record.box, record.covariance, colour)
        text = f"{STATES[record.state]} {record.score:.2f}"
        place = (max(round(record.box.x), 0), max(round(record.box.y) - 6, 12))
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, 1, cv2.LINE_AA)
    return canvas


def _palette(frame: Image) -> Pillow.Image:
    """96 colours of a frame and of the drawings, which are too small to win a place themselves."""
    colours = [TRUTH_COLOUR, *COLOURS.values()]
    strip = np.array(colours, dtype=np.uint8).repeat(frame.shape[1] // len(colours), axis=0)
    strip = np.tile(strip[None], (frame.shape[0] // 4, 1, 1))
    source = np.concatenate([frame[:, : strip.shape[1]], strip])
    return Pillow.fromarray(cv2.cvtColor(source, cv2.COLOR_BGR2RGB)).quantize(96)


def write_gif(run: ClipRun, path: Path) -> None:
    """The clip with boxes and ellipses, every second frame, at about its own speed."""
    chosen = run.records[::2]
    frames = []
    for record in chosen:
        canvas = draw(record)
        scale = GIF_WIDTH / canvas.shape[1]
        small = cv2.resize(canvas, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        frames.append(np.asarray(small, dtype=np.uint8))
    palette = _palette(frames[len(frames) // 2])
    pictures = [
        Pillow.fromarray(cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)).quantize(
            palette=palette, dither=Pillow.Dither.NONE
        )
        for frame in frames
    ]
    step_ms = (chosen[-1].stamp - chosen[0].stamp) / 1e6 / max(len(chosen) - 1, 1)
    pictures[0].save(
        path, save_all=True, append_images=pictures[1:], duration=max(step_ms, 20), loop=0
    )


def write_plot(run: ClipRun, path: Path) -> None:
    """Overlap, and the centre's error beside its 95 % ellipse, over time."""
    seconds = np.array([(r.stamp - run.records[0].stamp) / 1e9 for r in run.records])
    overlap = np.array([np.nan if r.overlap is None else r.overlap for r in run.records])
    error, axis = np.full(len(seconds), np.nan), np.full(len(seconds), np.nan)
    for index, record in enumerate(run.records):
        if record.covariance is not None:
            axis[index] = ellipse_axes(record.covariance[:2, :2], 0.95)[0]
        if record.box is not None and record.truth is not None:
            box, truth = record.box, record.truth
            error[index] = np.hypot(box.cx - truth.cx, box.cy - truth.cy)
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(8, 5), sharex=True, layout="constrained")
    top.plot(seconds, overlap, color="tab:green", label=f"mean {run.mean_overlap:.2f}")
    top.set(ylabel="overlap (IoU)", ylim=(0, 1), title=f"{run.name} clip")
    bottom.plot(seconds, axis, color="tab:orange", label="95 % ellipse, longer half-axis")
    bottom.plot(seconds, error, color="tab:blue", label="error of the centre")
    bottom.set(xlabel="time (s)", ylabel="px")
    bottom.set_ylim(bottom=0)
    for plot in (top, bottom):
        plot.grid(alpha=0.3)
        plot.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


CSV_COLUMNS = (
    "clip", "frame", "stamp_ns", "state", "score", "x", "y", "w", "h",
    "var_cx", "var_cy", "var_w", "var_h", "iou", "latency_ms",
)  # fmt: skip


def write_csv(runs: list[ClipRun], path: Path) -> None:
    """One line a frame; cells stay empty where the node said nothing."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(CSV_COLUMNS)
        for run in runs:
            for index, record in enumerate(run.records):
                row: list[object] = [run.name, index, record.stamp]
                if record.box is None or record.covariance is None or record.state is None:
                    row += [""] * 10
                else:
                    variances = np.diag(record.covariance)
                    row += [STATES[record.state], f"{record.score:.4f}"]
                    row += [f"{value:.3f}" for value in (*record.box, *variances)]
                row.append("" if record.overlap is None else f"{record.overlap:.4f}")
                row.append("" if record.latency is None else f"{record.latency * 1e3:.2f}")
                table.writerow(row)


PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Demo of the ViL tracker</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem; color: #222; background: #fff; }}
table {{ border-collapse: collapse; margin: 1rem 0; }}
th, td {{ padding: .3rem .8rem; border-bottom: 1px solid #ccc; text-align: right; }}
th:first-child, td:first-child {{ text-align: left; }}
.clip {{ display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }}
.clip img {{ max-width: 100%; height: auto; border: 1px solid #ddd; }}
.table {{ overflow-x: auto; }}
</style>
<h1>Demo of the ViL tracker</h1>
<p>Frames went from a bag through DDS to the node; the boxes came back as messages. White: the
truth. Green: tracking, orange: uncertain, red: lost, with the ellipse that holds the centre with
95 % probability by the tracker's own account.</p>
<div class="table"><table>
<tr><th>clip</th><th>frames</th><th>tracked</th><th>mean IoU</th><th>frames/s</th>
<th>latency p50, ms</th><th>p99, ms</th></tr>
{rows}
</table></div>
{clips}
<p>All numbers: <a href="detections.csv">detections.csv</a></p>
</html>
"""


def write_report(runs: list[ClipRun], out: Path) -> None:
    """index.html (with all pictures in it), and the pictures and detections.csv beside it."""
    out.mkdir(parents=True, exist_ok=True)
    write_csv(runs, out / "detections.csv")
    rows, clips = [], []
    for run in runs:
        gif, plot = out / f"{run.name}.gif", out / f"{run.name}.png"
        write_gif(run, gif)
        write_plot(run, plot)
        name = html.escape(run.name)
        rows.append(
            f"<tr><td>{name}</td><td>{len(run.records)}</td><td>{run.tracked}</td>"
            f"<td>{run.mean_overlap:.2f}</td><td>{run.fps:.1f}</td>"
            f"<td>{run.latency_ms(50):.1f}</td><td>{run.latency_ms(99):.1f}</td></tr>"
        )
        clips.append(
            f'<h2>{name}</h2>\n<div class="clip"><img src="{embedded(gif)}" '
            f'alt="{name} clip with boxes"><img src="{embedded(plot)}" '
            f'alt="overlap and ellipse over time"></div>'
        )
    (out / "index.html").write_text(PAGE.format(rows="\n".join(rows), clips="\n".join(clips)))
