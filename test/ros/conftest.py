"""ROS 2 for the tests below this folder: local traffic only, in a domain of this run's own.

Without ROS 2 nothing here is collected. With ROS 2 but without a built package the run stops:
tests that silently vanish would look like tests that pass.
"""

import importlib
import os

import pytest


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
os.environ.setdefault("FASTDDS_BUILTIN_TRANSPORTS", "LARGE_DATA")


def pytest_report_header() -> str:
    if collect_ignore_glob:
        return "ROS 2: no rclpy here, test/ros is left out"
    return f"ROS 2: domain {os.environ['ROS_DOMAIN_ID']}"
