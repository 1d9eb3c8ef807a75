"""Which files the pip package `vil-tracker` holds; all else about it is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import find_packages, setup

INIT = Path(__file__).parent / "vil_tracker_core" / "__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text(encoding="utf-8"), re.MULTILINE)
assert VERSION is not None, f"{INIT} states no __version__"

# The ROS node is not part of it: vil_tracker_ros is built by colcon, with its interfaces.
setup(
    version=VERSION[1],
    packages=find_packages(include=["vil_tracker_core", "vil_tracker_core.*"]),
    package_data={"vil_tracker_core": ["py.typed"], "vil_tracker_core.weights": ["*.safetensors"]},
)
