"""Plays a bag to the tracker and reports how well it followed the bag's target.

    ros2 launch vil_tracker_ros replay.launch.py bag:=BAG [truth:=TOPIC_OR_FILE] [out:=FOLDER]

Everything ends with the report. Messages keep the stamps that they were recorded with.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit, OnProcessIO
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node

from launch import LaunchDescription
from vil_tracker_core.evaluation.bags import COMPRESSED_IMAGE, open_bag
from vil_tracker_ros.replay_evaluator import READY

ARGUMENTS = {
    "bag": (None, "bag folder, .mcap or .db3"),
    "truth": ("", "topic or file of the truth; the bag's /ground_truth by default"),
    "out": ("out/replay", "folder of the report"),
    "image": ("", "topic of the images; the bag's only one by default"),
    "rate": ("1.0", "speed; 2 plays twice as fast"),
    "params_file": (None, "YAML of the tracker's parameters"),
    "log_level": ("info", "debug, info, warn, error or fatal"),
}


def actions(context):
    value = {name: LaunchConfiguration(name).perform(context) for name in ARGUMENTS}
    with open_bag(Path(value["bag"])) as bag:
        topic = value["image"] or bag.image_topic()
        compressed = bag.topics[topic].type == COMPRESSED_IMAGE
    launch_folder = Path(get_package_share_directory("vil_tracker_ros")) / "launch"
    tracker = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(launch_folder / "tracker.launch.py")),
        launch_arguments={
            "image": topic,
            "image_transport": "compressed" if compressed else "raw",
            "params_file": value["params_file"],
            "log_level": value["log_level"],
        }.items(),
    )
    evaluator = Node(
        package="vil_tracker_ros",
        executable="replay_evaluator",
        output="screen",
        parameters=[
            {
                "bag": value["bag"],
                "truth": value["truth"],
                "image_topic": topic,
                "out": value["out"],
            }
        ],
    )
    player = Node(
        package="vil_tracker_ros",
        executable="bag_player",
        output="screen",
        # the tracker may have to load for a while
        arguments=[value["bag"], "--rate", value["rate"], "--wait", "120", "--topics", topic],
    )
    # reading a long bag's stamps takes a while; frames played before that would be missed
    waiting = [player]

    def ready(event):
        return waiting.pop() if waiting and READY in event.text.decode() else None

    listen = OnProcessIO(target_action=evaluator, on_stdout=ready, on_stderr=ready)
    end = OnProcessExit(target_action=evaluator, on_exit=[EmitEvent(event=Shutdown())])
    return [RegisterEventHandler(listen), RegisterEventHandler(end), tracker, evaluator]


def generate_launch_description() -> LaunchDescription:
    config = Path(get_package_share_directory("vil_tracker_ros")) / "config" / "tracker.yaml"
    defaults = {"params_file": str(config)}
    return LaunchDescription(
        [
            DeclareLaunchArgument(name, default_value=defaults.get(name, default), description=text)
            for name, (default, text) in ARGUMENTS.items()
        ]
        + [OpaqueFunction(function=actions)]
    )
