"""The benchmark measures what it says: the same frames, all stages, no warm-up."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from vil_tracker_core.evaluation.bench import (
    STAGES,
    WARM_UP,
    BenchConfig,
    Timed,
    against_csrt,
    bench,
    scene,
    write,
)


def test_the_scene_runs_forwards_and_backwards() -> None:
    frame_of = scene(4)
    frames, boxes = zip(*(frame_of(number) for number in range(9)), strict=True)
    assert {frame.shape for frame in frames} == {(720, 1280, 3)}
    assert len({frame.tobytes() for frame in frames}) == 4
    for number, mirrored in ((4, 2), (5, 1), (6, 0), (7, 1), (8, 2)):
        np.testing.assert_array_equal(frames[number], frames[mirrored])
        assert boxes[number] == boxes[mirrored]


def test_a_summary_gives_medians_and_95th_percentiles() -> None:
    timed = Timed("x", 1, init_ms=[3.0, 1.0, 2.0], update_ms=[float(n) for n in range(101)])
    summary = timed.summary()
    assert summary["init"]["median_ms"] == 2.0
    assert summary["update"] == {"median_ms": 50.0, "p95_ms": 95.0}


def test_costs_are_of_one_track_and_of_csrt_with_as_many_threads() -> None:
    def run(name: str, threads: int, tracks: int, ms: float) -> dict[str, object]:
        return {"name": name, "threads": threads, "tracks": tracks, "update": {"median_ms": ms}}

    runs = [run("csrt", 1, 1, 20.0), run("net", 1, 4, 40.0), run("csrt", 2, 1, 10.0)]
    assert against_csrt({"runs": [*runs, run("net", 2, 1, 5.0)]}) == [1.0, 0.5, 1.0, 0.5]


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        return bench(
            BenchConfig(
                models=("vil_tiny",),
                backends=("torch",),
                precisions=("float32",),
                threads=(1,),
                tracks=(1, 2),
                frames=4,
            )
        )


def test_every_tracker_is_measured_on_every_frame(result: dict) -> None:
    names = [(run["name"], run["tracks"]) for run in result["runs"]]
    assert names == [
        ("csrt", 1),
        ("kcf", 1),
        ("vil_tiny torch float32", 1),
        ("vil_tiny torch float32", 2),
    ]
    for run in result["runs"]:
        assert run["update"]["median_ms"] > 0
        assert run["init"]["median_ms"] > 0
    assert result["frames"] == 4
    assert result["memory_mb"][0]["last"] > 10


def test_the_stages_make_up_the_update(result: dict) -> None:
    run = result["runs"][2]
    assert tuple(run["stages"]) == STAGES
    total = sum(stage["median_ms"] for stage in run["stages"].values())
    assert total == pytest.approx(run["update"]["median_ms"], rel=0.5)


def test_it_is_written_as_json_and_as_a_chart(result: dict, tmp_path: Path) -> None:
    write(result, tmp_path / "new" / "folder")
    folder = tmp_path / "new" / "folder"
    assert json.loads((folder / "bench.json").read_text()) == result
    assert (folder / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert WARM_UP > 0
