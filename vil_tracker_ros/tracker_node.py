"""The lifecycle node `vil_tracker`: camera frames in, detections with covariance out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import rclpy
from rclpy._rclpy_pybind11 import RCLError
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.qos import QoSProfile, qos_profile_sensor_data
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2D, Detection2DArray

from vil_tracker_core.geometry import Box
from vil_tracker_core.tracking.multi import MultiTracker
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import TrackerConfig, TrackState
from vil_tracker_ros import parameters
from vil_tracker_ros.conversions import from_bounding_box, stamp_ns, to_detection, to_time, to_track
from vil_tracker_ros.images import to_bgr
from vil_tracker_ros.msg import TrackArray
from vil_tracker_ros.pipeline import NS, Frame, FrameResult, Pipeline, Refused
from vil_tracker_ros.srv import InitTrack, StopTrack


class TrackerNode(LifecycleNode):
    """Loads the net when configured; listens, tracks and publishes while active."""

    def __init__(self) -> None:
        super().__init__("vil_tracker")
        self.values = parameters.declare(self)
        self._network: Network | None = None
        self._pipeline: Pipeline | None = None
        # The services exist in every state: a call while inactive is answered with the reason.
        self.create_service(InitTrack, "init_track", self._on_init)
        self.create_service(StopTrack, "stop_track", self._on_stop)

    # lifecycle

    def start(self) -> bool:
        """Configures and activates the node without a lifecycle manager; False where it failed."""
        done = TransitionCallbackReturn.SUCCESS
        return self.trigger_configure() is done and self.trigger_activate() is done

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        values = self.values
        try:
            self._network = open_network(
                values["weights"], values["backend"], values["device"], values["threads"]
            )
            self._warm_up(self._network)
        except (ValueError, RuntimeError) as error:
            self.get_logger().error(f"not configured: {error}")
            return TransitionCallbackReturn.FAILURE
        out = QoSProfile(depth=10)
        self._detection = self.create_publisher(Detection2D, "detection", out)
        self._detections = self.create_publisher(Detection2DArray, "detections", out)
        self._tracks = self.create_publisher(TrackArray, "tracks", out)
        return TransitionCallbackReturn.SUCCESS

    @staticmethod
    def _warm_up(network: Network) -> None:
        """The first passes are slow; they happen here instead of on the first frames."""
        frame = np.zeros((480, 640, 3), dtype=np.uint8)
        tracker = MultiTracker(network)
        tracker.add("warm-up", frame, Box(300, 220, 40, 40), 0.0)
        for number in range(3):
            tracker.update(frame, float(number))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._network is None:
            return TransitionCallbackReturn.ERROR
        values = self.values
        config = TrackerConfig(
            confident=values["confident"],
            doubtful=values["doubtful"],
            patience=values["patience"],
        )
        self._pipeline = Pipeline(
            MultiTracker(self._network, config),
            decode=to_bgr,
            size_of=self._size_of,
            publish=self._publish,
            report=self.get_logger().error,
            history=values["init_history"],
            max_tracks=values["max_tracks"],
        )
        kind = CompressedImage if values["image_transport"] == "compressed" else Image
        newest_only = QoSProfile(
            depth=1,
            reliability=qos_profile_sensor_data.reliability,
            durability=qos_profile_sensor_data.durability,
        )
        self._subscription = self.create_subscription(kind, "image", self._on_image, newest_only)
        self.get_logger().info(f"active: listening to {self._subscription.topic_name}")
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop_working()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        for publisher in (self._detection, self._detections, self._tracks):
            self.destroy_publisher(publisher)
        self._network = None
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop_working()
        return TransitionCallbackReturn.SUCCESS

    def stop_working(self) -> None:
        """Ends reception and the worker; all tracks are gone."""
        if self._pipeline is not None:
            self.destroy_subscription(self._subscription)
            self._pipeline.close()
            self._pipeline = None

    # frames

    def _size_of(self, message: Any) -> tuple[int, int]:
        """(width, height) of a message; a compressed one is decoded for it, once a track."""
        if isinstance(message, Image):
            return message.width, message.height
        height, width = to_bgr(message).shape[:2]
        return width, height

    def _on_image(self, message: Any) -> None:
        if self._pipeline is not None:
            self._pipeline.offer(Frame(stamp_ns(message.header.stamp), message))

    def _publish(self, done: FrameResult) -> None:
        header = done.frame.message.header
        found = [
            to_detection(name, result, header)
            for name, result in done.results.items()
            if result.state is not TrackState.LOST
        ]
        for detection in found:
            self._detection.publish(detection)
        self._detections.publish(Detection2DArray(header=header, detections=found))
        tracks = TrackArray(header=header, processing=done.processing, dropped=done.dropped)
        tracks.tracks = [
            to_track(name, result, done.infos[name].started_ns, done.infos[name].frames)
            for name, result in done.results.items()
        ]
        tracks.latency = (self.get_clock().now().nanoseconds - done.frame.stamp_ns) / NS
        self._tracks.publish(tracks)

    # services

    def _on_init(
        self, request: InitTrack.Request, response: InitTrack.Response
    ) -> InitTrack.Response:
        def to_box(width: int, height: int) -> Box:
            scale = (float(width), float(height)) if request.normalized else (1.0, 1.0)
            return from_bounding_box(request.bbox, scale)

        try:
            pipeline = self._active_pipeline()
            frame, track_id = pipeline.start_track(
                to_box, request.track_id, stamp_ns(request.stamp)
            )
        except Refused as refusal:
            response.message = str(refusal)
            self.get_logger().warning(f"init_track refused: {refusal}")
            return response
        response.success, response.track_id = True, track_id
        response.stamp = to_time(frame.stamp_ns)
        response.message = f"{track_id} starts on frame {frame.stamp_ns / NS:.9f}"
        self.get_logger().info(response.message)
        return response

    def _on_stop(
        self, request: StopTrack.Request, response: StopTrack.Response
    ) -> StopTrack.Response:
        try:
            response.stopped = self._active_pipeline().stop_track(request.track_id)
        except Refused as refusal:
            response.message = str(refusal)
            return response
        response.success = True
        response.message = f"stopped: {', '.join(response.stopped) or 'none was running'}"
        return response

    def _active_pipeline(self) -> Pipeline:
        if self._pipeline is None:
            raise Refused("the node is not active: activate it first (ros2 lifecycle set)")
        return self._pipeline


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the node until it is told to stop; the exit status says whether it could start."""
    cv2.setNumThreads(1)  # its threads would fight with the net's
    rclpy.init(args=argv)
    try:
        node = TrackerNode()
    except parameters.ParameterError as error:
        print(f"vil_tracker: {error}", file=sys.stderr)
        rclpy.try_shutdown()
        return 2
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        if node.values["autostart"] and not node.start():
            return 2
        executor.spin()
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except RCLError:
        if rclpy.ok():  # else the context went while a transition was under way
            raise
    finally:
        node.stop_working()
        node.destroy_node()
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
