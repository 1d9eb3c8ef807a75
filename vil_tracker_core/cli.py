"""The command `vil-tracker`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Optional

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from vil_tracker_core.evaluation.cases import Source
    from vil_tracker_core.geometry import Box
    from vil_tracker_core.model.cost import Cost
    from vil_tracker_core.model.presets import ModelConfig

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Track one object in a drone camera's stream: train, run, replay and measure.",
)
bag_app = typer.Typer(no_args_is_help=True, help="Rosbags: make, look into, play.")
app.add_typer(bag_app, name="bag")

TRACKER_HELP = (
    "Several with commas: a shipped preset (vil_nano), a weights file, csrt, kcf, mil, onnx:FILE. "
    "Ours with other settings: vil_nano+film=off+template_every=0."
)


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="A preset (its shipped weights, if any) or a weights file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters and arithmetic by part; of weights also calibration and provenance."""
    import yaml

    from vil_tracker_core import weights
    from vil_tracker_core.model.cost import cost
    from vil_tracker_core.model.presets import PRESETS

    if model not in PRESETS and not Path(model).is_file():
        raise ValueError(f"{model!r} is neither a weights file nor a preset: {', '.join(PRESETS)}")
    said: dict[str, Any] = {}
    if model in PRESETS and not weights.shipped(model).is_file():
        config = PRESETS[model]
    else:
        loaded = weights.load(weights.find(model))
        config = loaded.config
        said = {"calibration": vars(loaded.calibration), "provenance": loaded.provenance}
    said = {"config": config.to_dict(), **said}
    found = cost(config)
    if as_json:
        typer.echo(json.dumps({"name": config.name, **found.to_dict(), **said}, indent=1))
        return
    _print_cost(config, found)
    plain = json.loads(json.dumps(said))  # tuples to lists
    typer.echo("\n" + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True).rstrip())


def _print_cost(config: ModelConfig, found: Cost) -> None:
    """The tables of `info`: parameters by part, arithmetic by part, FiLM's share, the budget."""
    from vil_tracker_core.model import cost

    console, parts = Console(), found.parameters
    table = Table(title=f"{config.name}: parameters")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    plain = config.depth - config.tmoe_blocks
    for name, count in (
        (f"one mLSTM block (dim {config.dim}, no MLP)", parts.mlstm_block),
        ("one TMoE block (mLSTM cell + TMoE-MLP)", parts.tmoe_block),
        ("stem + positions + token types", parts.embedding),
        (f"backbone: {plain} blocks + {config.tmoe_blocks} TMoE blocks", parts.backbone),
        (f"FiLM modulation ({config.film_layers} layers)", parts.film),
        ("centre head", parts.centre_head),
        ("uncertainty head", parts.uncertainty_head),
        ("whole (backbone, FiLM, heads)", parts.whole),
    ):
        table.add_row(name, f"{count:,}" if count else "none")
    size = cost.BYTES_FP16 * parts.whole
    table.add_row("whole, fp16", f"{size / 2**20:.1f} MiB")
    console.print(table)

    work = {
        "init": found.init,
        "frame": found.frame,
        "frame, no cache": found.frame_uncached,
    }
    table = Table(title="giga multiply-adds (MACs); FLOPs are twice as many")
    table.add_column("part")
    for heading in work:
        table.add_column(heading, justify="right")
    for part in ("stem", "blocks", "film", "heads", "total"):
        values = (getattr(macs, part) / 1e9 for macs in work.values())
        table.add_row(part if part != "total" else "all, GMACs", *(f"{v:.3f}" for v in values))
    flops = (2 * macs.total / 1e9 for macs in work.values())
    table.add_row("all, GFLOPs", *(f"{v:.3f}" for v in flops))
    console.print(table)
    cached = "is computed once" if config.scan == "regional" else "runs with every frame"
    film = "off"
    if config.film_layers:
        film = (
            f"adds {parts.film:,} parameters "
            f"({cost.added_share(parts.film, parts.whole):.1%}) and "
            f"{2 * found.frame.film / 1e9:.3f} GFLOPs a frame "
            f"({cost.added_share(found.frame.film, found.frame.total):.1%})"
        )
    for line in (
        "counted: matrix products and convolutions, one template; element-wise work is not",
        f"scan {config.scan}: the template's side of the blocks {cached}",
        f"FiLM ({config.film}) {film}",
        f"budget: {_of(parts.whole / 1e6, cost.MAX_PARAMETERS / 1e6, 'M parameters')}; "
        f"{_of(size / 1e6, cost.MAX_BYTES_FP16 / 1e6, 'MB in fp16')}; "
        f"{_of(found.frame.total / 1e9, cost.MAX_MACS / 1e9, 'GMACs a frame')}; "
        "30 ms a frame: see `vil-tracker bench`",
    ):
        typer.echo(line)


def _of(value: float, limit: float, unit: str) -> str:
    return f"{value:.1f} of {limit:.0f} {unit}" + ("" if value <= limit else " (over)")


@app.command("init-from")
def init_from(
    checkpoint: Annotated[
        Path,
        typer.Argument(help="Published ViL weights as .safetensors, or FEAR-XS as .onnx."),
    ],
    out: Annotated[Path, typer.Argument(help="Weights file to make.")],
    preset_name: Annotated[
        str, typer.Option("--preset", help="The net to start; its width is the checkpoint's.")
    ] = "vil_s",
    seed: Annotated[int, typer.Option(help="Of what the checkpoint does not hold.")] = 0,
) -> None:
    """Start a net from published weights, for `init:` of a training's config.

    ViL-S of version 1 fits vil_s in every block. Version 2 (vil2-...) fits but for its biases and
    its 2-D convolutions. FEAR-XS's tracking network, an ONNX file, starts the trunk of vil_nano's
    stem and what compares the search region with the template. A .th or .pth file is a pickle and
    is never read: the refusal says how to make safetensors of it.
    """
    import torch

    from vil_tracker_core import weights
    from vil_tracker_core.model.init_from import from_published, read_checkpoint
    from vil_tracker_core.model.presets import preset
    from vil_tracker_core.model.tracker import ViLTracker

    config = preset(preset_name)
    if out.exists():
        raise ValueError(f"{out} exists already: choose another name")
    published = read_checkpoint(checkpoint)
    torch.manual_seed(seed)
    try:
        tensors, report = from_published(published, ViLTracker(config))
        provenance = {
            "init_from": checkpoint.name,
            "sha256": weights.checksum(published),
            "seed": seed,
            "not_taken": sorted(report.left),
        }
        made = weights.Weights(config, tensors, provenance=provenance)
        made.check()
    except ValueError as error:
        raise ValueError(f"{checkpoint}: {error}") from None
    weights.save(out, made)
    rows = report.rows()
    width = max(len(name) for name, *_ in rows)
    for name, fate, count in rows:
        typer.echo(f"{count:4} x {name:<{width}}  {fate}")
    typer.echo(
        f"{len(report.taken)} tensors taken, {len(report.left)} not taken, "
        f"{len(report.fresh)} of {config.name} not in the checkpoint; use it by init: {out}"
    )


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML, see config/train/.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10 too
        typer.Option(help="Folder for checkpoint, weights and log; runs/NAME by default."),
    ] = None,
    changes: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="In place of the file's: batch=8, teacher.share=0.5, teacher=null. Repeatable.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the folder.")] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Only save a sheet of the clips that it would see.")
    ] = False,
) -> None:
    """Train a model. SIGTERM or Ctrl-C saves a checkpoint; --resume goes on from it."""
    from vil_tracker_core.training.config import load_config

    loaded = load_config(config, changes or [])
    folder = out or Path("runs") / config.stem
    if show:
        import cv2

        from vil_tracker_core.data.contact_sheet import contact_sheet
        from vil_tracker_core.training.sources import clip_dataset

        sheet = contact_sheet(clip_dataset(loaded), count=32)
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "contact_sheet.jpg"
        if not cv2.imwrite(str(path), sheet):
            raise OSError(f"{path} could not be written (disk full?)")
        typer.echo(f"contact sheet: {path}")
        return
    _settle_allocator()
    from vil_tracker_core.training.loop import train as run

    typer.echo(f"weights: {run(loaded, folder, resume)}")


@app.command()
def annotate(
    videos: Annotated[
        Path, typer.Argument(help="Folder of videos, each a folder with img/; no truth is needed.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder of sequences to make.")],
    teacher: Annotated[Path, typer.Option(help="Folder of the teacher's .onnx files.")],
    kind: Annotated[str, typer.Option(help="fear_xs or nanotrack.")] = "fear_xs",
    tracks: Annotated[int, typer.Option(min=1, help="Of a video, at most.")] = 8,
    without: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="a,b,c: videos to leave alone, such as those held out."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the places where tracks begin.")] = 0,
) -> None:
    """Let a teacher track things in videos without truth: sequences to train on.

    A track is kept where the ways forwards and backwards agree and the thing moves. The sequences
    link to the videos' own frames.
    """
    from vil_tracker_core.training.annotate import CROPS, AnnotateConfig
    from vil_tracker_core.training.annotate import annotate as run
    from vil_tracker_core.training.teachers import KINDS

    if kind not in KINDS:
        raise ValueError(f"--kind {kind}: choose one of {', '.join(KINDS)}")
    config = AnnotateConfig(tracks=tracks)
    ends = run(videos, out, KINDS[kind](teacher, CROPS), config, seed, _names(without))
    for reason, count in ends.most_common():
        typer.echo(f"{count:5d} {reason}")
    typer.echo(f"{ends['kept']} sequences in {out}")


ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "GOMP_SPINCOUNT": "100000",
}
"""Keep freed memory in the process, since handing it back after every step is slow; and let a
thread spin for a moment between one small operation and the next, but not while another process
loads clips in its place."""


def _settle_allocator() -> None:
    """Starts this process anew with `ALLOCATOR` set, since malloc reads it only at the start."""
    if all(name in os.environ for name in ALLOCATOR):
        return
    os.environ.update({k: v for k, v in ALLOCATOR.items() if k not in os.environ})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


@app.command()
def flight(
    out: Annotated[Path, typer.Argument(help="Folder to make.")],
    seed: Annotated[int, typer.Option(help="Another seed, another flight.")] = 0,
    frames: Annotated[int, typer.Option(min=2)] = 240,
    fps: Annotated[float, typer.Option(min=1)] = 30.0,
) -> None:
    """Render a drone's flight after a car, with exact truth, as a folder of frames."""
    from vil_tracker_core.data.flight import render_flight
    from vil_tracker_core.data.sequence import write_folder

    write_folder(render_flight(seed, frames, fps=fps), out, fps=fps)


@app.command("eval")
def evaluate(
    layout: Annotated[
        str,
        typer.Argument(
            help="folder, otb, uav123, dtb70, visdrone, lasot, got10k, trackingnet, or bag."
        ),
    ],
    root: Annotated[Path, typer.Argument(help="The data set's folder; for bag, one of bags.")],
    tracker: Annotated[str, typer.Option(help=TRACKER_HELP)] = "vil_nano",
    out: Annotated[
        Path, typer.Option(help="Folder for report and runs; finished runs in it are kept.")
    ] = Path("out/eval"),
    split: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="Of lasot, got10k, trackingnet; the one for testing by default."),
    ] = None,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="a,b,c: names of the sequences to run; all by default."),
    ] = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes on this machine.")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a tracker.")] = 1,
    device: Annotated[str, typer.Option(help="Where our network runs: cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run trackers on a benchmark and write a report (index.html, CSV, JSON, PNG).

    Stopped, the same command goes on: a finished sequence is run again only where weights, code
    or data have changed. Under `accelerate launch` the sequences are split over all ranks; --out
    must then be one folder for all of them.

    Exit status: 0 when all went well, 1 when a sequence failed and the report leaves it out, 2
    when nothing could be run. See docs/evaluate.md.
    """
    from vil_tracker_core.evaluation.cases import BenchmarkSource

    source = BenchmarkSource(layout, root, split, _names(only))
    _evaluate(source, tracker, out, workers, threads, device, as_json)


def _names(text: str | None) -> tuple[str, ...]:
    """The parts of a list with commas."""
    return tuple(filter(None, map(str.strip, (text or "").split(","))))


def _evaluate(
    source: Source, tracker: str, out: Path, workers: int, threads: int, device: str, as_json: bool
) -> None:
    """Runs, reports, prints, and ends with status 1 where something could not be run."""
    from vil_tracker_core.evaluation.benchmark import run_benchmark
    from vil_tracker_core.evaluation.peers import parse_trackers
    from vil_tracker_core.evaluation.report import write_report
    from vil_tracker_core.evaluation.scoring import score, short_json

    results = run_benchmark(source, parse_trackers(tracker, threads, device), out, workers=workers)
    if results is None:  # another rank writes the report
        return
    scores = score(results)
    page = write_report(results, scores, out)
    if as_json:
        typer.echo(json.dumps(short_json(scores), indent=1))
    else:
        table = Table(title=results.cases.title)
        for heading in ("tracker", "sequences", "AUC", "P20", "NP.2", "frames/s"):
            table.add_column(heading, justify="left" if heading == "tracker" else "right")
        for each in scores:
            known = (each.auc, each.p20, each.np20)
            numbers = ["-" if value != value else f"{value:.3f}" for value in known]
            table.add_row(each.name, str(len(each.sequences)), *numbers, f"{each.fps:.1f}")
        Console().print(table)
        if results.resumed:
            typer.echo(f"{results.resumed} runs were taken over from {out}")
        typer.echo(f"report: {page}")
    for fault in results.faults:
        typer.echo(f"vil-tracker: {fault}", err=True)
    if results.faults:
        raise typer.Exit(1)


BENCH_BACKENDS, BENCH_PRECISIONS = ["auto"], ["auto"]
BENCH_THREADS, BENCH_TRACKS = [1, 2], [1]


@app.command()
def bench(
    models: Annotated[
        Optional[list[str]],  # noqa: UP045
        typer.Argument(help="Presets or weights files; vil_nano by default."),
    ] = None,
    backend: Annotated[
        list[str], typer.Option(help="auto, openvino, onnxruntime or torch; repeatable.")
    ] = BENCH_BACKENDS,
    precision: Annotated[
        list[str], typer.Option(help="auto, float32 or bfloat16; repeatable.")
    ] = BENCH_PRECISIONS,
    threads: Annotated[
        list[int], typer.Option(min=1, help="CPU threads; repeatable.")
    ] = BENCH_THREADS,
    tracks: Annotated[
        list[int], typer.Option(min=1, help="Targets a frame; repeatable.")
    ] = BENCH_TRACKS,
    frames: Annotated[int, typer.Option(min=1, help="Frames that count.")] = 200,
    peers: Annotated[bool, typer.Option(help="CSRT and KCF on the same frames.")] = True,
    out: Annotated[Path, typer.Option(help="Folder for bench.json and bench.png.")] = Path(
        "out/bench"
    ),
) -> None:
    """Measure init and the stages of a step on 720p frames, beside CSRT and KCF."""
    from vil_tracker_core.evaluation.bench import STAGES, BenchConfig, against_csrt, write
    from vil_tracker_core.evaluation.bench import bench as measure

    chosen = BenchConfig(
        models=tuple(models or ["vil_nano"]),
        backends=tuple(backend),
        precisions=tuple(precision),
        threads=tuple(threads),
        tracks=tuple(tracks),
        frames=frames,
        peers=peers,
    )
    result = measure(chosen)
    title = f"ms on {result['machine']['cpu']}, {frames} frames, median (p95)"
    table = Table(title=title, box=SIMPLE_HEAD, padding=0)  # all of it in 80 columns
    table.add_column("tracker")
    for heading in ("threads", "tracks", "init", "update", *STAGES):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("of CSRT a track", justify="right")
    for run, share in zip(result["runs"], against_csrt(result), strict=True):
        update = f"{run['update']['median_ms']:.1f} ({run['update']['p95_ms']:.1f})"
        stages = [run["stages"].get(stage, {}).get("median_ms") for stage in STAGES]
        table.add_row(
            run["name"],
            str(run["threads"]),
            str(run["tracks"]),
            f"{run['init']['median_ms']:.1f}",
            update,
            *("" if value is None else f"{value:.2f}" for value in stages),
            f"{share:.2f}",
        )
    Console().print(table)
    for memory in result["memory_mb"]:
        typer.echo(
            f"memory with {memory['threads']} threads: {memory['first']:.0f} MB after warm-up, "
            f"{memory['last']:.0f} MB at the end"
        )
    write(result, out)
    typer.echo(f"{out / 'bench.json'}, {out / 'bench.png'}")


@app.command()
def average(
    models: Annotated[
        list[str], typer.Argument(metavar="WEIGHTS...", help="Weights files of one config.")
    ],
    out: Annotated[Path, typer.Option(help="Weights file to make; calibrate it afterwards.")],
) -> None:
    """Average the weights of several training stages, which often beats each of them."""
    from vil_tracker_core import weights
    from vil_tracker_core.weights.average import average as mean

    if out.exists():
        raise ValueError(f"{out} exists already: choose another name")
    weights.save(out, mean([weights.find(model) for model in models]))
    typer.echo(f"weights: {out}, of {len(models)}; not calibrated")


@app.command()
def calibrate(
    model: Annotated[
        str, typer.Argument(metavar="WEIGHTS", help="A weights file or a shipped preset.")
    ],
    root: Annotated[Path, typer.Argument(help="Folder of sequences with truth, to fit on.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Weights file to make; without it, the numbers are only printed."),
    ] = None,
    only: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="a,b,c: names of the sequences to fit on; all by default."),
    ] = None,
    check: Annotated[
        Optional[Path],  # noqa: UP045
        typer.Option(help="Folder to measure on only; may be ROOT, then all but --only."),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of the net.")] = 1,
) -> None:
    """Fit the published covariance to a tracker's real errors, so that it means what it says.

    Prints how often the truth lies in the 50, 90 and 95 % regions, before and after. The boxes stay
    as they are. The rule of the fit: evaluation/calibration.py.
    """
    from vil_tracker_core import weights
    from vil_tracker_core.evaluation.calibration import LEVELS
    from vil_tracker_core.evaluation.calibration import calibrate as fit

    if out is not None and out.exists():
        raise ValueError(f"{out} exists already: choose another name")
    names = _names(only)
    made = fit(weights.find(model), root, names, check, threads)
    levels = "/".join(f"{100 * level:.0f}" for level in LEVELS)
    table = Table(title=f"% of frames with the truth in the {levels} % region")
    for heading in ("split", "calibration", "frames", "centre", "box"):
        table.add_column(heading)
    for each in made.coverage:
        shares = (" ".join(f"{100 * v:3.0f}" for v in part) for part in (each.centre, each.box))
        table.add_row(each.split, each.calibration, str(each.frames), *shares)
    Console().print(table)
    for name, calibration in (("old", made.old), ("new", made.weights.calibration)):
        spread, settling = (
            ", ".join(f"{value:.3f}" for value in part)
            for part in (calibration.spread, calibration.settling)
        )
        typer.echo(
            f"{name}: spread of (cx, cy, w, h) {spread}; settling of centre and size {settling} s; "
            f"drift {calibration.drift:.3f}/s; fitted on {calibration.fitted_on}"
        )
    if out is not None:
        weights.save(out, made.weights)
        typer.echo(f"weights: {out}")


@app.command()
def export(
    model: Annotated[str, typer.Argument(help="A weights file or a shipped preset.")],
    out: Annotated[Path, typer.Argument(help="Folder for start.onnx, start_2.onnx and step.onnx.")],
) -> None:
    """Write the net as ONNX graphs, checked against PyTorch in onnxruntime."""
    from vil_tracker_core import weights
    from vil_tracker_core.evaluation.agreement import export_checked
    from vil_tracker_core.evaluation.bench import scene

    frame_of = scene()
    frames = (frame_of(number)[0] for number in range(20))
    apart = export_checked(weights.load(weights.find(model)), out, frames, frame_of(0)[1])
    typer.echo(
        f"graphs: {out}\n"
        f"from PyTorch at most, over 20 frames: box {apart.box:.1e} px, score {apart.score:.1e}, "
        f"sigma {100 * apart.sigma:.1e} %"
    )


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/demo"),
) -> None:
    """Track the two bundled clips through ROS 2 and show what came out."""
    _run_ros_module("vil_tracker_ros.demo", ["--out", str(out)])


@app.command()
def golden(
    renew: Annotated[bool, typer.Option("--renew", help="Write the golden files anew.")] = False,
    root: Annotated[
        Path, typer.Option(help="The repository, with clips/ and test/golden/.")
    ] = Path(),
) -> None:
    """Compare the bundled clips' boxes with the golden files, or renew these.

    Exit status: 0 when all is within the bounds (evaluation/golden.py), 1 when something is not, 2
    when the files cannot be used, as after a change of weights.
    """
    from vil_tracker_core.evaluation import golden as files

    if renew:
        table = Table(title="what changed, new against old")
        for heading in ("clip", "IoU before", "IoU now", "edge px", "mean px", "states"):
            table.add_column(heading, justify="left" if heading == "clip" else "right")
        for each in files.renew(root):
            before = "-" if each.before is None else f"{each.before:.4f}"
            numbers = (before, f"{each.overlap:.4f}", f"{each.edge:.2g}", f"{each.mean:.2g}")
            table.add_row(each.clip, *numbers, str(each.states))
        Console().print(table)
        typer.echo(f"written: {files.golden_folder(root)}")
        return
    found, said = files.check(root)
    table = Table(title="greatest differences from the golden files")
    for heading in ("clip", *files.Difference._fields):
        table.add_column(heading, justify="left" if heading == "clip" else "right")
    for name, difference in found.items():
        table.add_row(name, *(f"{value:.2g}" for value in difference))
    table.add_row("bound", *(f"{value:g}" for value in files.BOUNDS), "0", "0")
    Console().print(table)
    for line in said:
        typer.echo(f"vil-tracker: {line}", err=True)
    if said:
        raise typer.Exit(1)


@bag_app.command("make")
def bag_make(
    sequence: Annotated[Path, typer.Argument(help="Folder with img/ and groundtruth_rect.txt.")],
    out: Annotated[Path, typer.Argument(help="Bag to make (a folder).")],
    raw: Annotated[bool, typer.Option(help="Uncompressed images.")] = False,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs.")] = 90,
    storage: Annotated[str, typer.Option(help="mcap or sqlite3")] = "mcap",
) -> None:
    """Turn a folder of frames with truth into a bag."""
    from vil_tracker_core.data.sequence import DataError, read_folder
    from vil_tracker_core.evaluation.bags import make_bag

    if storage not in ("mcap", "sqlite3"):
        raise DataError(f"--storage {storage!r} is neither mcap nor sqlite3")
    make_bag(read_folder(sequence), out, raw=raw, quality=quality, storage=storage)  # type: ignore[arg-type]


@bag_app.command("info")
def bag_info(bag: Annotated[Path, typer.Argument(help="Bag folder, .mcap or .db3.")]) -> None:
    """List a bag's topics."""
    from vil_tracker_core.evaluation.bags import open_bag

    with open_bag(bag) as reader:
        table = Table(title=f"{bag}: {reader.duration:.2f} s")
        for heading in ("topic", "type", "messages"):
            table.add_column(heading)
        for name, topic in reader.topics.items():
            table.add_row(name, topic.type, str(topic.count))
    Console().print(table)


@bag_app.command("play")
def bag_play(
    bag: Annotated[Path, typer.Argument(help="Bag folder, .mcap or .db3.")],
    rate: Annotated[float, typer.Option(help="Speed, 1 is as recorded.")] = 1.0,
    loop: Annotated[bool, typer.Option(help="Start over at the end, until stopped.")] = False,
) -> None:
    """Publish a bag's messages at their recorded times (needs ROS 2)."""
    arguments = [str(bag), "--rate", str(rate), *(["--loop"] if loop else [])]
    _run_ros_module("vil_tracker_ros.bag_player", arguments)


@bag_app.command("eval")
def bag_eval(
    bag: Annotated[Path, typer.Argument(help="Bag folder, .mcap or .db3.")],
    tracker: Annotated[str, typer.Option(help=TRACKER_HELP)] = "vil_nano",
    truth: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(
            help="Detection2D topic, or a file of x,y,w,h (a line a frame) or stamp,x,y,w,h; "
            "/ground_truth where the bag has it."
        ),
    ] = None,
    box: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="x,y,w,h of the target in the first frame; needed without truth."),
    ] = None,
    image_topic: Annotated[
        Optional[str],  # noqa: UP045
        typer.Option(help="The frames' topic; the bag's only image topic by default."),
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for report and runs.")] = Path("out/bag_eval"),
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of a tracker.")] = 1,
    device: Annotated[str, typer.Option(help="Where our network runs: cpu, cuda, ...")] = "cpu",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Run trackers on every frame of a bag and write a report; no ROS is needed.

    With truth, joined to the frames on the stamp, the report has all metrics; without, the path,
    the score and the time of every frame. Exit status as of `vil-tracker eval`.
    """
    from vil_tracker_core.evaluation.cases import BagSource

    source = BagSource(bag, image_topic, truth, None if box is None else _parse_box(box))
    _evaluate(source, tracker, out, 1, threads, device, as_json)


def _parse_box(text: str) -> Box:
    """The box of ``x,y,w,h``; raises ValueError where it is something else."""
    from vil_tracker_core.geometry import Box

    try:
        x, y, w, h = (float(part) for part in text.split(","))
    except ValueError:
        raise ValueError(f"--box {text!r} is not x,y,w,h in pixels") from None
    return Box(x, y, w, h)


def _run_ros_module(module: str, arguments: list[str]) -> None:
    """Becomes another Python module; the core itself never imports ROS."""
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


def main() -> None:
    """Entry point: faults of data and files end in one sentence and exit status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        typer.echo(f"vil-tracker: {error}", err=True)
        sys.exit(2)
