"""The command `vil-tracker`."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer
from rich.console import Console
from rich.table import Table

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Track one object in a drone camera's stream: train, run, replay and measure.",
)
bag_app = typer.Typer(no_args_is_help=True, help="Rosbags: make, look into, play.")
app.add_typer(bag_app, name="bag")


@app.command()
def info(
    model: Annotated[
        str, typer.Argument(help="A preset (its shipped weights, if any) or a weights file.")
    ],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Parameters by part; of a weights file also its calibration and provenance."""
    from vil_tracker_core import weights
    from vil_tracker_core.model.presets import PRESETS
    from vil_tracker_core.model.tracker import ViLTracker, count_parameters

    extra: dict[str, object] = {}
    if model in PRESETS and not weights.shipped(model).is_file():
        net = ViLTracker(PRESETS[model])
    else:
        loaded = weights.load(weights.find(model))
        net = loaded.build()
        extra = {"calibration": vars(loaded.calibration), "provenance": loaded.provenance}
    parts = {
        "backbone": count_parameters(net.backbone),
        "film": count_parameters(net.film) if net.film else 0,
        "centre head": count_parameters(net.centre_head),
        "uncertainty head": count_parameters(net.uncertainty_head),
    }
    total = count_parameters(net)
    if as_json:
        values = {"name": net.config.name, "parameters": total, "parts": parts, **extra}
        typer.echo(json.dumps({**values, "config": net.config.to_dict()}, indent=1))
        return
    table = Table(title=f"{net.config.name}: {total / 1e6:.2f} M parameters")
    table.add_column("part")
    table.add_column("parameters", justify="right")
    for name, count in parts.items():
        table.add_row(name, f"{count:,}")
    table.add_row("whole, fp16", f"{2 * total / 1e6:.1f} MB")
    Console().print(table)
    for name, value in extra.items():
        typer.echo(f"{name}: {json.dumps(value)}")


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="YAML, see config/train/.")],
    out: Annotated[
        Optional[Path],  # noqa: UP045 - typer reads this at run time on Python 3.10 too
        typer.Option(help="Folder for checkpoint, weights and log; runs/NAME by default."),
    ] = None,
    resume: Annotated[bool, typer.Option(help="Go on from the checkpoint in the folder.")] = False,
) -> None:
    """Train a model. SIGTERM or Ctrl-C saves a checkpoint; --resume goes on from it."""
    from vil_tracker_core.training.config import load_config
    from vil_tracker_core.training.loop import train as run

    loaded = load_config(config)
    _settle_allocator()
    typer.echo(f"weights: {run(loaded, out or Path('runs') / config.stem, resume)}")


ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "100000000000",
    "MALLOC_MMAP_THRESHOLD_": "100000000000",
    "OMP_WAIT_POLICY": "PASSIVE",
}
"""Keep freed memory in the process and let idle threads sleep: on a CPU, handing memory back
after every step and spinning cost more than the arithmetic."""


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


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("out/demo"),
) -> None:
    """Track the two bundled clips through ROS 2 and show what came out."""
    _run_ros_module("vil_tracker_ros.demo", ["--out", str(out)])


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
