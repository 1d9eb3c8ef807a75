"""ROS 2 for the tests below this folder: local traffic only, in a domain of this run's own.

Without ROS 2 nothing here is collected. With ROS 2 but without a built package the run stops:
tests that silently vanish would look like tests that pass.
"""

import importlib
import itertools
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # for ground.py


def importable(name: str) -> bool:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        return False
    return True


collect_ignore_glob: list[str] = []
if not importable("rclpy"):
    collect_ignore_glob.append("test_*.py")
elif not importable("vil_tracker_ros.msg"):
    raise pytest.UsageError(
        "vil_tracker_ros is not built: run `make build`, then `. scripts/env.sh` in this shell"
    )

# Two runs on one machine must not hear each other. Domains up to 101 are free of the ports that
# Linux hands out for outgoing connections; the first ones are left to people.
os.environ.setdefault("ROS_DOMAIN_ID", str(10 + os.getpid() % 90))
os.environ.setdefault("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
PROFILES = Path(__file__).parents[2] / "config" / "fastdds.xml"
os.environ.setdefault("FASTRTPS_DEFAULT_PROFILES_FILE", str(PROFILES))
DOMAINS = itertools.cycle(range(10, 100))
for _ in range(int(os.environ["ROS_DOMAIN_ID"]) - 10):
    next(DOMAINS)


def pytest_report_header() -> str:
    if collect_ignore_glob:
        return "ROS 2: no rclpy here, test/ros is left out"
    return f"ROS 2: domain {os.environ['ROS_DOMAIN_ID']} and following"


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> int:
    """A domain of the test's own: nothing of the last test's node is heard in the next."""
    number = next(DOMAINS)
    monkeypatch.setenv("ROS_DOMAIN_ID", str(number))
    return number


@pytest.fixture
def ground(domain: int) -> Iterator[Any]:
    """A ground station, for a tracker in a process of its own."""
    import rclpy
    from ground import Ground

    rclpy.init()
    made = Ground()
    yield made
    made.destroy_node()
    rclpy.shutdown()


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The parameter that names weights of a net that is small and has learned nothing."""
    import torch

    from vil_tracker_core import weights
    from vil_tracker_core.model.presets import preset
    from vil_tracker_core.model.tracker import ViLTracker

    torch.manual_seed(0)
    config = preset("vil_tiny")
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    weights.save(path, weights.Weights(config, ViLTracker(config).state_dict()))
    return f"weights:={path}"
