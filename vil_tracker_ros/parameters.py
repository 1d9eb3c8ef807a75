"""The node's parameters: one table that declares, bounds and documents them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from vil_tracker_core.tracking.network import BACKENDS, PRECISIONS

STATES = ("unconfigured", "inactive", "active", "finalized")
"""Lifecycle states, from the one that allows every change to the one that allows none."""

REMEDIES = {
    "unconfigured": "deactivate and clean it up first (ros2 lifecycle set)",
    "inactive": "deactivate it first (ros2 lifecycle set)",
    "active": "start another",
}
"""What to do about a parameter that could be changed until a state."""


@dataclass(frozen=True)
class Parameter:
    """One row of the table.

    Attributes:
        name, default, description: as `ros2 param describe` shows them.
        until: the last of `STATES` in which it may change; empty: never, once the node runs.
        bounds: smallest and largest value.
        choices: allowed texts.
    """

    name: str
    default: Any
    description: str
    until: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    @property
    def text(self) -> str:
        """The description and what is allowed."""
        text = self.description
        if self.bounds:
            text += f" {self.bounds[0]:g} to {self.bounds[1]:g}."
        if self.choices:
            text += f" One of: {', '.join(self.choices)}."
        return text

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows; the middleware enforces type and bounds."""
        made = ParameterDescriptor(description=self.text, read_only=not self.until)
        if self.bounds and isinstance(self.default, float):
            low, high = self.bounds
            made.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.bounds:
            low, high = self.bounds
            made.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        return made


TABLE = (
    Parameter(
        "autostart", True, "Configure and activate at start, without a lifecycle manager.", ""
    ),
    Parameter(
        "weights",
        "vil_nano",
        "A shipped preset's name, or the path of a weights file.",
        "unconfigured",
    ),
    Parameter("device", "cpu", "Where the network runs, as torch names it.", "unconfigured"),
    Parameter(
        "backend",
        "auto",
        "What runs the network; auto takes openvino on the CPU and PyTorch elsewhere.",
        "unconfigured",
        choices=BACKENDS,
    ),
    Parameter(
        "precision",
        "auto",
        "Of the network's products; auto takes bfloat16 where the CPU has it, which is faster.",
        "unconfigured",
        choices=PRECISIONS,
    ),
    Parameter("threads", 2, "CPU threads of the network.", "unconfigured", (1, 64)),
    Parameter(
        "image_transport",
        "raw",
        "Whether `image` carries sensor_msgs/Image or CompressedImage.",
        "inactive",
        choices=("raw", "compressed"),
    ),
    Parameter(
        "image_reliability",
        "best_effort",
        "Reliability that is asked of the camera; best_effort takes any camera's images.",
        "inactive",
        choices=("best_effort", "reliable"),
    ),
    Parameter(
        "image_depth",
        1,
        "Images that the middleware keeps until the node takes them.",
        "inactive",
        (1, 100),
    ),
    Parameter("max_tracks", 4, "Targets that can be followed at once.", "inactive", (1, 32)),
    Parameter(
        "init_history",
        2.0,
        "Seconds of frames that are held, for boxes drawn on a frame of the past.",
        "inactive",
        (0.0, 10.0),
    ),
    Parameter(
        "init_memory",
        512,
        "Megabytes that these frames may take; the oldest go first.",
        "inactive",
        (1, 16_384),
    ),
    Parameter("confident", 0.45, "Score from which a frame sees the target.", "active", (0.0, 1.0)),
    Parameter("doubtful", 0.2, "Score below which a frame does not see it.", "active", (0.0, 1.0)),
    Parameter("patience", 0.5, "Seconds unseen until a track is lost.", "active", (0.0, 60.0)),
)
ROWS = {row.name: row for row in TABLE}


class ParameterError(ValueError):
    """A parameter's value that cannot be used; the message names it and what is allowed."""


def declare(node: Node) -> dict[str, Any]:
    """Declares the table on a node and returns the values; raises ParameterError."""
    values: dict[str, Any] = {}
    for row in TABLE:
        try:
            values[row.name] = node.declare_parameter(row.name, row.default, row.descriptor()).value
        except Exception as error:  # rclpy has one exception a kind of fault, all unrelated
            raise ParameterError(f"parameter {row.name}: {error}") from None
    validate(values)
    return values


def validate(values: Mapping[str, Any]) -> None:
    """Raises ParameterError where values of the right types do not make sense."""
    for name, value in values.items():
        row = ROWS[name]
        if row.choices and value not in row.choices:
            raise ParameterError(
                f"parameter {name}: {value!r} is not one of {', '.join(row.choices)}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ParameterError(f"parameter {name}: {value} is not a finite number")
    if values["doubtful"] > values["confident"]:
        raise ParameterError("parameter doubtful must not be above confident")


def validate_changes(values: Mapping[str, Any], changes: Mapping[str, Any], state: str) -> None:
    """Raises ParameterError where changes to the values cannot be made in a lifecycle state."""
    for name in changes:
        until = ROWS[name].until
        if STATES.index(state) > STATES.index(until):
            raise ParameterError(
                f"parameter {name} cannot change while the node is {state}: {REMEDIES[until]}"
            )
    validate({**values, **changes})


def readme_rows() -> str:
    """The rows of the README's table of parameters."""
    rows = []
    for row in TABLE:
        default = str(row.default).lower() if isinstance(row.default, bool) else row.default
        rows.append(f"| `{row.name}` | {default} | {row.until or 'never'} | {row.text} |")
    return "\n".join(rows) + "\n"
