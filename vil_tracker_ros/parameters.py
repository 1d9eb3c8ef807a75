"""The node's parameters: one table that declares, bounds and documents them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node

from vil_tracker_core.tracking.network import BACKENDS


@dataclass(frozen=True)
class Parameter:
    """One row of the table. ``bounds`` are inclusive; ``choices`` list allowed texts."""

    name: str
    default: Any
    description: str
    bounds: tuple[float, float] | None = None
    choices: tuple[str, ...] = ()

    def descriptor(self) -> ParameterDescriptor:
        """What `ros2 param describe` shows; the middleware enforces the bounds."""
        text = self.description
        if self.choices:
            text += f" One of: {', '.join(self.choices)}."
        made = ParameterDescriptor(description=text, read_only=True)
        if self.bounds and isinstance(self.default, float):
            low, high = self.bounds
            made.floating_point_range = [FloatingPointRange(from_value=low, to_value=high)]
        elif self.bounds:
            low, high = self.bounds
            made.integer_range = [IntegerRange(from_value=int(low), to_value=int(high), step=1)]
        return made


TABLE = (
    Parameter("autostart", True, "Configure and activate at start, without a lifecycle manager."),
    Parameter("weights", "vil_nano", "A shipped preset's name, or the path of a weights file."),
    Parameter("device", "cpu", "Where the network runs, as torch names it."),
    Parameter(
        "backend",
        "auto",
        "What runs the network; auto takes onnxruntime on the CPU and PyTorch elsewhere.",
        choices=BACKENDS,
    ),
    Parameter("threads", 2, "CPU threads of the network.", (1, 64)),
    Parameter(
        "image_transport",
        "raw",
        "Whether `image` carries sensor_msgs/Image or CompressedImage.",
        choices=("raw", "compressed"),
    ),
    Parameter("max_tracks", 4, "Targets that can be followed at once.", (1, 32)),
    Parameter(
        "init_history",
        2.0,
        "Seconds of frames that are held, for boxes drawn on a frame of the past.",
        (0.0, 10.0),
    ),
    Parameter("confident", 0.5, "Score from which a frame sees the target.", (0.0, 1.0)),
    Parameter("doubtful", 0.2, "Score below which a frame does not see it.", (0.0, 1.0)),
    Parameter("patience", 0.5, "Seconds unseen until a track is lost.", (0.0, 60.0)),
)


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
        if row.choices and values[row.name] not in row.choices:
            raise ParameterError(
                f"parameter {row.name}: {values[row.name]!r} is not one of {', '.join(row.choices)}"
            )
    if values["doubtful"] > values["confident"]:
        raise ParameterError("parameter doubtful must not be above confident")
    return values


def readme_rows() -> str:
    """The rows of the README's table of parameters."""
    rows = []
    for row in TABLE:
        default = str(row.default).lower() if isinstance(row.default, bool) else row.default
        text = row.description
        if row.bounds:
            text += f" {row.bounds[0]:g} to {row.bounds[1]:g}."
        if row.choices:
            text += f" One of: {', '.join(row.choices)}."
        rows.append(f"| `{row.name}` | {default} | {text} |")
    return "\n".join(rows) + "\n"
