"""Starts the tracker: `ros2 launch vil_tracker_ros tracker.launch.py image:=/camera/image`.

`--show-args` lists the arguments.
"""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import DeclareLaunchArgument, SetEnvironmentVariable
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription

PROFILES = "FASTRTPS_DEFAULT_PROFILES_FILE"
CHOSEN = {PROFILES, "FASTDDS_BUILTIN_TRANSPORTS"}
"""Variables by which you say how Fast DDS is to carry messages."""
ARGUMENTS = {
    "namespace": ("", "namespace of the node and its topics", None),
    "image": ("image", "topic of the camera", None),
    "image_transport": (
        "raw",
        "raw (sensor_msgs/Image) or compressed (CompressedImage)",
        ["raw", "compressed"],
    ),
    "log_level": (
        "info",
        "least severe messages that are logged",
        ["debug", "info", "warn", "error", "fatal"],
    ),
    "use_sim_time": (
        "false",
        "take the time from /clock, as for bag replay with --clock",
        ["true", "false"],
    ),
    "respawn": ("false", "start the node again where it ends by itself", ["true", "false"]),
}


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory("vil_tracker_ros")) / "config"
    value = {name: LaunchConfiguration(name) for name in [*ARGUMENTS, "params_file"]}
    actions = [
        DeclareLaunchArgument(name, default_value=default, description=text, choices=choices)
        for name, (default, text, choices) in ARGUMENTS.items()
    ]
    actions.append(
        DeclareLaunchArgument(
            "params_file",
            default_value=str(config / "tracker.yaml"),
            description="YAML of parameters",
        )
    )
    if not CHOSEN & os.environ.keys():
        # the default drops most large best-effort images between processes
        actions.append(SetEnvironmentVariable(PROFILES, str(config / "fastdds.xml")))
    actions.append(
        Node(
            package="vil_tracker_ros",
            executable="tracker_node",
            name="vil_tracker",
            namespace=value["namespace"],
            output="screen",
            respawn=value["respawn"],
            respawn_delay=1.0,
            parameters=[
                value["params_file"],
                {
                    "image_transport": value["image_transport"],
                    "use_sim_time": value["use_sim_time"],
                },
            ],
            remappings=[("image", value["image"])],
            arguments=["--ros-args", "--log-level", value["log_level"]],
        )
    )
    return LaunchDescription(actions)
