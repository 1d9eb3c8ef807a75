"""A benchmark's results as JSON, tables, plots and one page that needs nothing beside it."""

from __future__ import annotations

import csv
import html
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import cv2
import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from rich.console import Console
from rich.progress import track

from vil_tracker_core.evaluation import metrics
from vil_tracker_core.evaluation.benchmark import Results, Run
from vil_tracker_core.evaluation.cases import Case
from vil_tracker_core.evaluation.pictures import (
    TRUTH_COLOUR,
    Colour,
    draw_box,
    draw_ellipse,
    embedded,
    jpeg,
    window_around,
)
from vil_tracker_core.evaluation.scoring import SequenceScore, TrackerScore, long_json, mean
from vil_tracker_core.geometry import Box, FloatArray, Image
from vil_tracker_core.tracking.online import TrackState

mpl.use("Agg")
from matplotlib import pyplot as plt

MAX_STRIPS = 12
"""Sequences that are shown with frames, the worst: a page of some megabytes still opens."""
STRIP_FRAMES = 6
TILE = (240, 180)
COLOURS = (
    "#1f77b4", "#d62728", "#2ca02c", "#ff7f0e", "#9467bd", "#8c564b", "#e377c2", "#17becf",
)  # fmt: skip
"""Of the trackers, in the order asked for."""
STATE_NAMES = {0: "", **{int(state): state.name.lower() for state in TrackState}}


def write_report(results: Results, scores: list[TrackerScore], out: Path) -> Path:
    """Writes report.json, trackers.csv, sequences.csv, the plots and index.html into ``out``.

    Sequences from bags also get a table of their frames and a plot over time. Frames of the worst
    sequences are read again here, for the pictures.

    Returns:
        The page's path.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / "report.json").write_text(json.dumps(long_json(results, scores), indent=1) + "\n")
    _write_tracker_table(scores, out / "trackers.csv")
    _write_sequence_table(scores, out / "sequences.csv")
    plots = _write_plots(scores, out)
    timed = [case for case in results.cases.cases if case.first_stamp is not None]
    for case in timed:
        runs = _runs_of(results, case)
        if runs:
            _write_frame_table(case, runs, scores, out / f"frames_{case.name}.csv")
            path = out / f"time_{case.name}.png"
            _plot_over_time(case, runs, scores, path)
            plots.append((f"{case.name} over time", path))
    page = out / "index.html"
    page.write_text(_page(results, scores, plots), encoding="utf-8")
    return page


def _runs_of(results: Results, case: Case) -> dict[str, Run]:
    """Tracker -> its run of a case, in the order asked for."""
    keys = [(tracker.name, case.name) for tracker in results.trackers]
    return {key[0]: results.runs[key] for key in keys if key in results.runs}


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _bgr(index: int) -> Colour:
    text = _colour(index).lstrip("#")
    red, green, blue = (int(text[at : at + 2], 16) for at in (0, 2, 4))
    return blue, green, red


# --- Tables ---------------------------------------------------------------------------------------

Column = tuple[str, str, Callable[[TrackerScore], float]]
TRACKER_COLUMNS: tuple[Column, ...] = (
    ("auc", "success AUC", lambda s: s.auc),
    ("p20", "precision, 20 px", lambda s: s.p20),
    ("np20", "normalised precision, 0.2", lambda s: s.np20),
    ("ao", "AO", lambda s: s.ao),
    ("sr50", "SR 0.5", lambda s: s.sr50),
    ("sr75", "SR 0.75", lambda s: s.sr75),
    ("f", "VOT-LT F", lambda s: s.lt.f if s.lt else math.nan),
    ("presence", "presence AUC", lambda s: s.presence),
    ("failures", "failures a sequence", lambda s: s.failures),
    ("coverage90", "in the 90 % region", lambda s: _at_90(s)),
    ("nll", "NLL, nats", lambda s: s.nll),
    ("lost", "share of frames lost", lambda s: s.lost),
    ("fps", "frames/s", lambda s: s.fps),
    ("ms50", "ms a frame, p50", lambda s: s.ms50),
    ("ms95", "p95", lambda s: s.ms95),
)
SEQUENCE_COLUMNS = (
    "frames", "auc", "p20", "np20", "ao", "sr50", "sr75", "failures", "coverage90", "nll", "lost",
    "fps", "ms50", "ms95",
)  # fmt: skip
FRAME_COLUMNS = (
    "tracker", "frame", "stamp_ns", "x", "y", "w", "h", "score", "state", "var_cx", "var_cy",
    "var_w", "var_h", "truth_x", "truth_y", "truth_w", "truth_h", "iou", "ms",
)  # fmt: skip


def _at_90(score: TrackerScore) -> float:
    return float(score.coverage[list(metrics.COVERAGE_LEVELS).index(0.9)])


def _cell(value: float, digits: int = 4) -> str:
    """A number for a CSV; empty where it is not known."""
    return f"{value:.{digits}f}" if math.isfinite(value) else ""


def _write_tracker_table(scores: list[TrackerScore], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tracker", "sequences", "failed", *(key for key, _, _ in TRACKER_COLUMNS)])
        for score in scores:
            numbers = [_cell(value(score)) for _, _, value in TRACKER_COLUMNS]
            table.writerow([score.name, len(score.sequences), len(score.failed), *numbers])


def _write_sequence_table(scores: list[TrackerScore], path: Path) -> None:
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["tracker", "sequence", *SEQUENCE_COLUMNS, "error"])
        for score in scores:
            for each in score.sequences:
                numbers = [_cell(float(getattr(each, name))) for name in SEQUENCE_COLUMNS[1:]]
                table.writerow([score.name, each.name, each.frames, *numbers, ""])
            for name, why in score.failed.items():
                table.writerow([score.name, name, *[""] * len(SEQUENCE_COLUMNS), why])


def _write_frame_table(
    case: Case, runs: dict[str, Run], scores: list[TrackerScore], path: Path
) -> None:
    first = case.first_stamp or 0
    overlaps = _overlaps_of(case, scores)
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(FRAME_COLUMNS)
        for name, run in runs.items():
            variances = np.diagonal(run.covariances, axis1=1, axis2=2)
            for index in range(run.start, len(run.boxes)):
                stamp = first + round(float(case.sequence.stamps[index]) * 1e9)
                row = [name, index, stamp, *(_cell(v, 3) for v in run.boxes[index])]
                row += [_cell(run.scores[index]), STATE_NAMES[int(run.states[index])]]
                row += [_cell(v, 3) for v in (*variances[index], *case.sequence.boxes[index])]
                row += [_cell(overlaps[name][index]), _cell(run.seconds[index] * 1e3, 2)]
                table.writerow(row)


def _overlaps_of(case: Case, scores: list[TrackerScore]) -> dict[str, FloatArray]:
    """Tracker -> (N,) overlaps of a case."""
    return {
        score.name: each.overlaps
        for score in scores
        for each in score.sequences
        if each.name == case.name
    }


# --- Plots ----------------------------------------------------------------------------------------


def _write_plots(scores: list[TrackerScore], out: Path) -> list[tuple[str, Path]]:
    """(title, file) of every plot for which there is something to show."""
    plots = []
    if any(math.isfinite(score.auc) for score in scores):
        plots += [
            ("Success", _save(_plot_success, scores, out / "success.png")),
            ("Precision", _save(_plot_precision, scores, out / "precision.png")),
            ("Speed and accuracy", _save(_plot_speed, scores, out / "speed.png")),
        ]
    if any(np.isfinite(score.coverage).any() for score in scores):
        plots.append(("Coverage", _save(_plot_coverage, scores, out / "coverage.png")))
    return plots


def _save(
    plot: Callable[[Axes, list[TrackerScore]], None], scores: list[TrackerScore], path: Path
) -> Path:
    figure, axes = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
    plot(axes, scores)
    axes.grid(alpha=0.3)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="best", fontsize="small")
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path


def _plot_success(axes: Axes, scores: list[TrackerScore]) -> None:
    for index, score in enumerate(scores):
        label = f"{score.name}  AUC {score.auc:.3f}"
        axes.plot(metrics.SUCCESS_THRESHOLDS, score.success, color=_colour(index), label=label)
    axes.set(
        xlabel="overlap (IoU) above", ylabel="share of frames", xlim=(0, 1), ylim=(0, 1),
        title="Success, mean over sequences",
    )  # fmt: skip


def _plot_precision(axes: Axes, scores: list[TrackerScore]) -> None:
    for index, score in enumerate(scores):
        label = f"{score.name}  {score.p20:.3f} at 20 px"
        axes.plot(metrics.PRECISION_THRESHOLDS, score.precision, color=_colour(index), label=label)
    axes.axvline(20, color="0.6", linewidth=1, linestyle=":")
    axes.set(
        xlabel="error of the centre at most (px)", ylabel="share of frames",
        xlim=(0, 50), ylim=(0, 1), title="Precision, mean over sequences",
    )  # fmt: skip


def _plot_speed(axes: Axes, scores: list[TrackerScore]) -> None:
    known = [(i, s) for i, s in enumerate(scores) if math.isfinite(s.fps) and math.isfinite(s.auc)]
    for index, score in known:
        axes.scatter([score.fps], [score.auc], s=60, color=_colour(index), zorder=3)
        axes.annotate(
            score.name, (score.fps, score.auc), xytext=(7, 5), textcoords="offset points",
            fontsize="small", color=_colour(index),
        )  # fmt: skip
    axes.set_xscale("log")
    if known:
        speeds = [score.fps for _, score in known]
        axes.set_xlim(min(speeds) / 2, max(speeds) * 4)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.xaxis.set_minor_formatter(lambda value, _: f"{value:g}" if f"{value:e}"[0] in "25" else "")
    axes.tick_params(axis="x", which="minor", labelsize="small")
    axes.set(xlabel="frames/s (log)", ylabel="success AUC", ylim=(0, 1), title="Speed and accuracy")


def _plot_coverage(axes: Axes, scores: list[TrackerScore]) -> None:
    axes.plot([0, 1], [0, 1], color="0.5", linestyle=":", label="calibrated")
    for index, score in enumerate(scores):
        for shares, style, what in (
            (score.coverage, "-", "box"),
            (score.centre_coverage, "--", "centre"),
        ):
            if np.isfinite(shares).any():
                axes.plot(
                    metrics.COVERAGE_LEVELS, shares, style, marker=".", color=_colour(index),
                    label=f"{score.name}, {what}",
                )  # fmt: skip
    axes.set(
        xlabel="probability that the covariance claims", ylabel="share of frames within",
        xlim=(0, 1), ylim=(0, 1), title="Coverage: above the line is too cautious",
    )  # fmt: skip


def _plot_over_time(
    case: Case, runs: dict[str, Run], scores: list[TrackerScore], path: Path
) -> None:
    """The centre's path through the picture, and score, time and overlap of every frame."""
    overlaps, seconds = _overlaps_of(case, scores), case.sequence.stamps
    axis, label = seconds, "time (s)"
    if (np.diff(seconds) < 0).any():  # a looped bag: over time the lines would fold back
        axis, label = np.arange(len(seconds), dtype=np.float64), "frame (the stamps jump back)"
    names = ["score", "latency", *(["overlap"] if case.scored else [])]
    figure = plt.figure(figsize=(11, 2.1 * len(names)), layout="constrained")
    grid = figure.add_gridspec(len(names), 2)
    plots = {"path": figure.add_subplot(grid[:, 0])}
    for row, panel in enumerate(names):
        plots[panel] = figure.add_subplot(grid[row, 1], sharex=plots.get("score"))
    truth = case.sequence.boxes
    if case.scored:
        centre = truth[:, :2] + truth[:, 2:] / 2
        plots["path"].plot(*centre.T, color="0.6", linewidth=3, label="truth")
    for index, (name, run) in enumerate(runs.items()):
        colour = _colour(index)
        centre = run.boxes[:, :2] + run.boxes[:, 2:] / 2
        plots["path"].plot(*centre.T, color=colour, linewidth=1, label=name)
        plots["path"].plot(*centre[run.start], "o", color=colour)
        plots["score"].plot(axis, run.scores, color=colour, linewidth=1, label=name)
        lost = np.where(run.states == TrackState.LOST, run.scores, np.nan)
        if np.isfinite(lost).any():
            plots["score"].plot(axis, lost, ".", color="k", markersize=3, label=f"{name}: lost")
        plots["latency"].plot(axis, run.seconds * 1e3, color=colour, linewidth=1, label=name)
        if case.scored:
            plots["overlap"].plot(axis, overlaps[name], color=colour, linewidth=1, label=name)
    width, height = next(iter(runs.values())).frame_size
    plots["path"].set(
        xlim=(0, width), ylim=(height, 0), aspect="equal", xlabel="x (px)", ylabel="y (px)",
        title=f"{case.name}: path of the centre (dot: start)",
    )  # fmt: skip
    plots["score"].set(ylabel="score", ylim=(0, 1.05))
    plots["latency"].set(ylabel="ms a frame")
    plots["latency"].set_ylim(bottom=0)
    if case.scored:
        plots["overlap"].set(ylabel="overlap (IoU)", ylim=(0, 1.05))
    plots[names[-1]].set_xlabel(label)
    for plot in plots.values():
        plot.grid(alpha=0.3)
        plot.legend(loc="best", fontsize="x-small")
    figure.savefig(path, dpi=110)
    plt.close(figure)


# --- Frames ---------------------------------------------------------------------------------------


def strip(case: Case, runs: dict[str, Run], overlaps: dict[str, FloatArray]) -> list[Image]:
    """STRIP_FRAMES pictures of a sequence, spread evenly, with truth (white), each tracker's box
    in its colour and, where it gives one, the 95 % ellipse of the centre."""
    pictures = []
    first = max(run.start for run in runs.values())
    chosen = np.linspace(first, len(case.sequence) - 1, STRIP_FRAMES).round().astype(int)
    for index in np.unique(chosen).tolist():
        frame = case.sequence.load(index)
        truth = _box(case.sequence.boxes[index])
        boxes = {name: box for name, run in runs.items() if (box := _box(run.boxes[index]))}
        shown = [*boxes.values(), *([truth] if truth else [])]
        size = frame.shape[1], frame.shape[0]
        x0, y0, x1, y1 = window_around(shown, size, TILE[0] / TILE[1])
        scale = min(TILE[0] / (x1 - x0), TILE[1] / (y1 - y0))
        tile_size = round((x1 - x0) * scale), round((y1 - y0) * scale)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        canvas: Image = np.zeros((TILE[1], TILE[0], 3), np.uint8)
        tile = cv2.resize(frame[y0:y1, x0:x1], tile_size, interpolation=how)
        left, top = (TILE[0] - tile_size[0]) // 2, (TILE[1] - tile_size[1]) // 2
        canvas[top : top + tile_size[1], left : left + tile_size[0]] = tile

        def placed(box: Box, x=x0 - left / scale, y=y0 - top / scale, scale=scale) -> Box:  # type: ignore[no-untyped-def]
            return Box((box.x - x) * scale, (box.y - y) * scale, box.w * scale, box.h * scale)

        if truth:
            draw_box(canvas, placed(truth), (0, 0, 0), 3)
            draw_box(canvas, placed(truth), TRUTH_COLOUR, 1)
        for at, (name, run) in enumerate(runs.items()):
            if name not in boxes:
                continue
            draw_box(canvas, placed(boxes[name]), _bgr(at), 2)
            if np.isfinite(run.covariances[index]).all():
                spread = run.covariances[index] * scale**2
                draw_ellipse(canvas, placed(boxes[name]), spread, _bgr(at))
        name = next(iter(runs))
        overlap = overlaps.get(name, np.full(len(case.sequence), np.nan))[index]
        _caption(canvas, f"{index + 1}" + (f"  IoU {overlap:.2f}" if overlap >= 0 else ""))
        pictures.append(canvas)
    return pictures


def _box(row: FloatArray) -> Box | None:
    return Box(*(float(value) for value in row)) if np.isfinite(row).all() else None


def _caption(canvas: Image, text: str) -> None:
    place = (5, canvas.shape[0] - 7)
    for colour, width in (((0, 0, 0), 3), ((255, 255, 255), 1)):
        cv2.putText(canvas, text, place, cv2.FONT_HERSHEY_SIMPLEX, 0.5, colour, width, cv2.LINE_AA)


# --- The page -------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 1.5rem auto;
       padding: 0 1rem; color: #222; background: #fff; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.25rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; overflow-wrap: anywhere; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; line-height: 1.3;
        font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .5rem; border-bottom: 1px solid #ddd; text-align: right; }
th { font-weight: 600; vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; }
.key { display: inline-block; width: .8em; height: .8em; border-radius: 2px; margin-right: .4em; }
.plots { margin-top: 1rem; display: grid; gap: 1rem;
         grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); }
.plots img, .wide img { max-width: 100%; height: auto; }
.strip { display: grid; grid-template-columns: repeat(6, 1fr); gap: .3rem; }
@media (max-width: 60rem) { .strip { grid-template-columns: repeat(3, 1fr); } }
@media (max-width: 30rem) { .strip { grid-template-columns: repeat(2, 1fr); } }
.strip img { width: 100%; height: auto; display: block; }
.faults { border-left: 4px solid #c33; padding: .2rem 1rem; background: #fdf3f3;
          overflow-wrap: anywhere; }
.note { color: #666; font-size: .9rem; }
"""


def _page(results: Results, scores: list[TrackerScore], plots: list[tuple[str, Path]]) -> str:
    title = html.escape(f"Trackers on {results.cases.title}")
    count = len(results.cases.cases)
    frames = sum(len(case.sequence) for case in results.cases.cases)
    wide = [(name, path) for name, path in plots if path.name.startswith("time_")]
    small = [plot for plot in plots if plot not in wide]
    parts = [
        "<!doctype html>\n<html lang='en'>\n<meta charset='utf-8'>",
        "<meta name='viewport' content='width=device-width, initial-scale=1'>",
        f"<title>{title}</title>\n<style>{STYLE}</style>\n<h1>{title}</h1>",
        f"<p>{count} sequence{'s' * (count != 1)}, {frames} frames.</p>",
        _faults(results),
        "<h2>Trackers</h2>",
        _tracker_table(scores),
        f"<div class='plots'>{''.join(_image(name, path) for name, path in small)}</div>",
        _attribute_table(scores),
        *(f"<h2>{html.escape(name)}</h2><div class='wide'>{_image(name, path)}</div>"
          for name, path in wide),
        _sequences(results, scores),
    ]  # fmt: skip
    return "\n".join(part for part in parts if part) + "\n</html>\n"


def _image(name: str, path: Path) -> str:
    return f"<img src='{embedded(path)}' alt='{html.escape(name, quote=True)}'>"


def _faults(results: Results) -> str:
    if not results.faults:
        return ""
    said = "".join(f"<li>{html.escape(fault)}</li>" for fault in results.faults)
    return (
        "<div class='faults'><p><strong>Not everything could be run.</strong> The numbers below "
        f"leave out what is named here.</p><ul>{said}</ul></div>"
    )


def _key(index: int, name: str) -> str:
    return f"<span class='key' style='background:{_colour(index)}'></span>{html.escape(name)}"


def _shown(value: float) -> str:
    if not math.isfinite(value):
        return "&ndash;"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """An HTML table; cells are HTML already."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    return f"<div class='table'><table><tr>{top}</tr>{body}</table></div>"


def _tracker_table(scores: list[TrackerScore]) -> str:
    used = [c for c in TRACKER_COLUMNS if any(math.isfinite(c[2](s)) for s in scores)]
    rows = []
    for index, score in enumerate(scores):
        cells = [_key(index, score.name), str(len(score.sequences))]
        rows.append(cells + [_shown(value(score)) for _, _, value in used])
    return _table(["tracker", "sequences", *(title for _, title, _ in used)], rows)


def _attribute_table(scores: list[TrackerScore]) -> str:
    found = [score.by_attribute() for score in scores]
    words = sorted({word for each in found for word in each})
    if not words:
        return ""
    rows = [
        [html.escape(word), str(max(each.get(word, (0, 0.0))[0] for each in found))]
        + [_shown(each.get(word, (0, math.nan))[1]) for each in found]
        for word in words
    ]
    heads = [_key(index, score.name) for index, score in enumerate(scores)]
    return "<h2>Attributes: success AUC</h2>" + _table(["attribute", "sequences", *heads], rows)


def _sequences(results: Results, scores: list[TrackerScore]) -> str:
    """All sequences, the first tracker's worst first, and frames of the worst."""
    known: dict[str, dict[str, SequenceScore]] = {}
    for score in scores:
        for each in score.sequences:
            known.setdefault(each.name, {})[score.name] = each
    if not known:
        return ""

    def badness(name: str) -> tuple[bool, float]:
        first = known[name].get(scores[0].name)
        auc = first.auc if first else mean(each.auc for each in known[name].values())
        return not math.isfinite(auc), auc

    order = sorted(known, key=badness)
    heads = [_key(index, score.name) for index, score in enumerate(scores)]
    rows = []
    for name in order:
        found = known[name]
        aucs = [found[s.name].auc if s.name in found else math.nan for s in scores]
        frames = next(iter(found.values())).frames
        rows.append([html.escape(name), str(frames), *map(_shown, aucs)])
    strips = _strips(results, scores, order[:MAX_STRIPS])
    if not any(math.isfinite(each.auc) for found in known.values() for each in found.values()):
        return "<h2>Frames</h2>" + strips
    about = f"<p class='note'>Success AUC, sorted by that of {html.escape(scores[0].name)}.</p>"
    return (
        "<h2>Sequences, worst first</h2>" + about + _table(["sequence", "frames", *heads], rows)
    ) + strips


def _strips(results: Results, scores: list[TrackerScore], names: list[str]) -> str:
    cases = {case.name: case for case in results.cases.cases}
    parts = [
        "<p class='note'>White: the truth. In a tracker's colour: its box, and the ellipse that "
        "holds the centre with 95 % probability by its own account. The caption has the frame's "
        "number and the overlap of the first tracker with the truth.</p>"
    ]
    console = Console(stderr=True)
    quiet = not console.is_terminal
    for name in track(names, "drawing", console=console, transient=True, disable=quiet):
        case = cases[name]
        runs = _runs_of(results, case)
        words = f" &middot; {html.escape(', '.join(case.attributes))}" if case.attributes else ""
        note = f"<p class='note'>{html.escape(case.note)}</p>" if case.note else ""
        tiles = "".join(
            f"<img src='{jpeg(picture)}' alt='frame of {html.escape(name, quote=True)}'>"
            for picture in strip(case, runs, _overlaps_of(case, scores))
        )
        parts.append(f"<h3>{html.escape(name)}{words}</h3>{note}<div class='strip'>{tiles}</div>")
    return "".join(parts)
