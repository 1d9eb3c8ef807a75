"""The launch files, where launch is installed: it is not on PyPI."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from ground import Ground

from vil_tracker_core.data.sequence import Sequence
from vil_tracker_core.evaluation.bags import make_bag

launch = pytest.importorskip("launch", reason="launch is not installed here")
pytest.importorskip("launch_ros", reason="launch_ros is not installed here")

from launch.actions import IncludeLaunchDescription, SetEnvironmentVariable  # noqa: E402
from launch.launch_description_sources import PythonLaunchDescriptionSource  # noqa: E402

LAUNCH = Path(__file__).parents[2] / "launch"
TRACKER, REPLAY = LAUNCH / "tracker.launch.py", LAUNCH / "replay.launch.py"


def description(path: Path) -> launch.LaunchDescription:
    source = PythonLaunchDescriptionSource(str(path))
    return source.get_launch_description(launch.LaunchContext())


def parameters_file(folder: Path, tiny: str) -> str:
    weights = tiny.removeprefix("weights:=")
    path = folder / "mine.yaml"
    path.write_text(f"/**:\n  ros__parameters:\n    weights: {weights}\n    backend: torch\n")
    return str(path)


def started(path: Path, **arguments: str) -> launch.LaunchService:
    """A service whose `run` launches a file with these arguments."""
    service = launch.LaunchService()
    source = PythonLaunchDescriptionSource(str(path))
    include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    service.include_launch_description(launch.LaunchDescription([include]))
    return service


def test_arguments() -> None:
    arguments = description(TRACKER).get_launch_arguments()
    assert {argument.name for argument in arguments} == {
        "namespace",
        "params_file",
        "image",
        "image_transport",
        "log_level",
        "use_sim_time",
        "respawn",
    }


PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"


@pytest.mark.parametrize("chosen", [None, PROFILES, "FASTDDS_BUILTIN_TRANSPORTS"])
def test_the_transport_is_set_unless_chosen(
    chosen: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(PROFILES)
    if chosen:
        monkeypatch.setenv(chosen, "mine")
    context = launch.LaunchContext()
    for entity in description(TRACKER).entities:
        if isinstance(entity, SetEnvironmentVariable):
            entity.execute(context)
    if chosen:
        assert context.environment[chosen] == "mine"
        assert {PROFILES, "FASTDDS_BUILTIN_TRANSPORTS"} & context.environment.keys() == {chosen}
    else:
        assert Path(context.environment[PROFILES]).name == "fastdds.xml"
        assert Path(context.environment[PROFILES]).is_file()


def test_the_node_runs_with_the_arguments_given(ground: Ground, tiny: str, tmp_path: Path) -> None:
    weights = tiny.removeprefix("weights:=")
    parameters = tmp_path / "mine.yaml"
    parameters.write_text(f"/**:\n  ros__parameters:\n    weights: {weights}\n    backend: torch\n")
    arguments = {
        "namespace": "drone",
        "image": "/front/image",
        "params_file": str(parameters),
        "log_level": "warn",
        "respawn": "true",
    }
    service = launch.LaunchService()
    source = PythonLaunchDescriptionSource(str(TRACKER))
    include = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    service.include_launch_description(launch.LaunchDescription([include]))
    seen: list[str] = []

    def look() -> None:
        try:
            ground.until(lambda: ground.count_subscribers("/front/image"), "the node to listen")
            ground.until(lambda: ground.count_publishers("/drone/tracks"), "its publisher")
            seen.extend("/".join(pair[::-1]) for pair in ground.get_node_names_and_namespaces())
        finally:
            service.shutdown()

    looking = threading.Thread(target=look)  # launch wants the main thread for itself
    looking.start()
    assert service.run() == 0
    looking.join()
    assert "/drone/vil_tracker" in seen


def test_a_replay_ends_with_a_report(domain: int, tiny: str, tmp_path: Path) -> None:
    frames = [np.full((120, 160, 3), shade, dtype=np.uint8) for shade in range(60, 130, 10)]
    boxes = np.tile([50.0, 40, 30, 20], (len(frames), 1))
    stamps = np.arange(len(frames)) / 4
    make_bag(Sequence("short", boxes, stamps, frames.__getitem__), tmp_path / "short")
    service = started(
        REPLAY,
        bag=str(tmp_path / "short"),
        out=str(tmp_path / "report"),
        params_file=parameters_file(tmp_path, tiny),
    )
    assert service.run() == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert list(report["trackers"]) == ["live"]
    assert (tmp_path / "report" / "index.html").is_file()
