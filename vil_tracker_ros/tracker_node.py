"""The lifecycle node `vil_tracker`: camera frames in, detections with covariance out."""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from collections.abc import Sequence
from typing import Any, NoReturn

import cv2
import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy, qos_policy_name_from_kind
from rclpy.signals import SignalHandlerOptions
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import Detection2D, Detection2DArray

from vil_tracker_core.geometry import Box
from vil_tracker_core.tracking.multi import MultiTracker
from vil_tracker_core.tracking.network import Network, open_network
from vil_tracker_core.tracking.online import TrackerConfig, TrackState
from vil_tracker_ros import camera, parameters
from vil_tracker_ros.conversions import (
    from_bounding_box,
    stamp_ns,
    to_detection,
    to_image,
    to_time,
    to_track,
)
from vil_tracker_ros.diagnostics import Health
from vil_tracker_ros.drawing import draw
from vil_tracker_ros.msg import TrackArray
from vil_tracker_ros.pipeline import NS, Frame, FrameResult, Pipeline, Refused, stamp_text
from vil_tracker_ros.processes import Stop
from vil_tracker_ros.srv import InitTrack, StopTrack

DIAGNOSTICS_PERIOD = 1.0
"""Seconds between two messages on /diagnostics."""

IMAGE_KINDS = {"raw": Image, "compressed": CompressedImage}
"""Message types by the parameter image_transport."""

SUCCESS = TransitionCallbackReturn.SUCCESS
FAILURE = TransitionCallbackReturn.FAILURE
ERROR = TransitionCallbackReturn.ERROR


class TrackerNode(LifecycleNode):
    """Loads the net when configured; listens, tracks and publishes while active."""

    def __init__(self) -> None:
        super().__init__("vil_tracker")
        self.values = parameters.declare(self)
        self.add_on_set_parameters_callback(self._on_set_parameters)
        self.add_post_set_parameters_callback(self._on_parameters_set)
        self._network: Network | None = None
        self._pipeline: Pipeline | None = None
        self._outputs: list[Any] = []
        self._finished = False
        self._publishers_heard = 0  # of images, as of the last look
        self._last_number: int | None = None  # of the last image, by its publisher's count
        self._health = Health()
        # The services and /diagnostics exist in every state: a call while inactive is answered
        # with the reason.
        self.create_service(InitTrack, "init_track", self._on_init)
        self.create_service(StopTrack, "stop_track", self._on_stop)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        # a clock of its own: simulated time may stand still
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(DIAGNOSTICS_PERIOD, self._diagnose, clock=steady)

    @property
    def lifecycle(self) -> str:
        """unconfigured, inactive, active or finalized."""
        if self._finished:
            return "finalized"
        if self._pipeline is not None:
            return "active"
        return "unconfigured" if self._network is None else "inactive"

    # lifecycle

    def start(self, stop: threading.Event | None = None) -> bool:
        """Configures and activates the node without a lifecycle manager; False where it failed.

        Where ``stop`` is set meanwhile, nothing new is begun.
        """
        if self.trigger_configure() is not SUCCESS:
            return False
        return (stop is not None and stop.is_set()) or self.trigger_activate() is SUCCESS

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        values = self.values
        self._health.restart()
        self.get_logger().info(f"loading {values['weights']}")
        try:
            network = open_network(
                values["weights"],
                values["backend"],
                values["device"],
                values["threads"],
                values["precision"],
            )
            self._warm_up(network)
        except Exception as error:  # whatever a weights file or a device may cause
            return self._fail("not configured", error, FAILURE)
        out = QoSProfile(depth=10)
        self._detection = self.create_publisher(Detection2D, "detection", out)
        self._detections = self.create_publisher(Detection2DArray, "detections", out)
        self._tracks = self.create_publisher(TrackArray, "tracks", out)
        self._debug = self.create_publisher(Image, "debug_image", QoSProfile(depth=1))
        self._outputs = [self._detection, self._detections, self._tracks, self._debug]
        self._network = network
        self.get_logger().info(f"configured: {network.backend} in {network.precision}")
        return SUCCESS

    @staticmethod
    def _warm_up(network: Network) -> None:
        """The first passes are slow; they happen here instead of on the first frames."""
        frame = np.zeros((480, 640, 3), dtype=np.uint8)
        tracker = MultiTracker(network)
        tracker.add("warm-up", frame, Box(300, 220, 40, 40), 0.0)
        for number in range(3):
            tracker.update(frame, float(number))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._health.restart()
        try:
            self._listen()
        except Exception as error:
            return self._fail("not activated", error, ERROR)
        self.get_logger().info(f"active: listening to {self._subscription.topic_name}")
        return super().on_activate(state)

    def _listen(self) -> None:
        """Starts the worker, then reception."""
        values = self.values
        if self._network is None:
            raise RuntimeError("no network is loaded")
        self._last_number = None
        self._pipeline = Pipeline(
            self._network,
            _thresholds(values),
            decode=camera.to_bgr,
            publish=self._publish,
            report=self._report,
            history=values["init_history"],
            memory=values["init_memory"] * 10**6,
            max_tracks=values["max_tracks"],
        )
        self._subscription = self.create_subscription(
            IMAGE_KINDS[values["image_transport"]],
            "image",
            self._on_image,
            QoSProfile(
                depth=values["image_depth"],
                reliability=ReliabilityPolicy[values["image_reliability"].upper()],
                durability=DurabilityPolicy.VOLATILE,
            ),
            event_callbacks=SubscriptionEventCallbacks(incompatible_qos=self._on_incompatible),
        )

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop_working()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._unload()
        return SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self.stop_working()
        self._unload()
        self._finished = True
        return SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Whatever failed, everything is given back: the node can be configured again."""
        self.stop_working()
        self._unload()
        return SUCCESS

    def _unload(self) -> None:
        for publisher in self._outputs:
            self.destroy_publisher(publisher)
        self._outputs = []
        self._network = None

    def _fail(
        self, what: str, error: Exception, outcome: TransitionCallbackReturn
    ) -> TransitionCallbackReturn:
        reason = f"{what}: {error}"
        self.get_logger().error(reason)
        self._health.fail(reason)
        return outcome

    def stop_working(self) -> bool:
        """Ends reception and the worker; all tracks are gone. False where the worker still has to
        end the frame in hand."""
        if self._pipeline is None:
            return True
        pipeline, self._pipeline = self._pipeline, None
        self.destroy_subscription(self._subscription)
        return pipeline.close()

    def destroy_node(self) -> None:
        """Leaves DDS; nothing of the node stays in shared memory."""
        super().destroy_node()
        # rclpy leaves this out, and with it the node would stay, until the process has ended
        self._state_machine.destroy_when_not_in_use()

    # frames

    def _on_image(self, message: Any, info: dict[str, Any]) -> None:
        """Takes an image; ``info`` is the middleware's, with the publisher's count of images."""
        if self._pipeline is None:
            return
        self._pipeline.miss(self._missed_before(info.get("publication_sequence_number")))
        stamp = stamp_ns(message.header.stamp)
        self._health.receive(stamp)
        try:
            size = camera.size_of(message)
        except ValueError as error:
            if self._health.refuse(camera.kind_of(message), str(error)):
                self.get_logger().error(f"an image is refused: {error} (said once, then counted)")
            return
        self._pipeline.offer(Frame(stamp, message, size, len(message.data)))

    def _missed_before(self, number: int | None) -> int:
        """How many images were lost, or replaced by newer ones, between the last one and this.

        The count is each publisher's own, so two of them on the topic cannot be told apart.
        """
        last, self._last_number = self._last_number, number
        if last is None or number is None or self._publishers_heard > 1:
            return 0
        return max(number - last - 1, 0)

    def _on_incompatible(self, event: Any) -> None:
        policy = qos_policy_name_from_kind(event.last_policy_kind)
        topic = self._subscription.topic_name
        reason = f"a publisher on {topic} offers an incompatible {policy}: its images do not arrive"
        self._health.mismatch(reason)
        self.get_logger().error(f"{reason} (parameter image_reliability)")

    def _report(self, reason: str) -> None:
        """Called by the worker where a frame or a track fails; each kind is logged once."""
        if self._health.fault(reason):
            self.get_logger().error(f"{reason} (said once, then counted)")

    def _publish(self, done: FrameResult) -> None:
        """Called by the worker with a frame's results."""
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
        tracks.in_node = time.monotonic() - done.frame.arrived
        self._tracks.publish(tracks)
        self._health.answer(done, tracks.latency, tracks.in_node - tracks.processing)
        if not done.late and self._debug.get_subscription_count() > 0:
            image = done.image if done.image is not None else camera.to_bgr(done.frame.message)
            self._debug.publish(to_image(draw(image, done.results, tracks.latency), header))

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
        response.message = f"{track_id} starts on frame {stamp_text(frame.stamp_ns)}"
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

    # parameters

    def _on_set_parameters(self, changes: list[Parameter]) -> SetParametersResult:
        try:
            parameters.validate_changes(self.values, _ours(changes), self.lifecycle)
        except parameters.ParameterError as error:
            return SetParametersResult(successful=False, reason=str(error))
        return SetParametersResult(successful=True)

    def _on_parameters_set(self, changes: list[Parameter]) -> None:
        self.values |= _ours(changes)
        if self._pipeline is not None:
            self._pipeline.configure(_thresholds(self.values))

    # diagnostics

    def _diagnose(self) -> None:
        name = f"{self.get_fully_qualified_name().lstrip('/')}: tracking"
        status = self._health.status(name, self.lifecycle, self._source(), time.monotonic())
        message = DiagnosticArray(status=[status])
        message.header.stamp = self.get_clock().now().to_msg()
        self._diagnostics.publish(message)

    def _source(self) -> str:
        """Where images come from, and whether they can be what is listened for."""
        topic = self.resolve_topic_name("image")
        publishers = self.get_publishers_info_by_topic(topic)
        self._publishers_heard = len(publishers)
        kind = IMAGE_KINDS[self.values["image_transport"]].__name__
        others = {p.topic_type for p in publishers} - {f"sensor_msgs/msg/{kind}"}
        if others:
            return f"{topic}, which carries {', '.join(sorted(others))} (parameter image_transport)"
        return f"{topic} (publishers: {len(publishers)})"


def _thresholds(values: dict[str, Any]) -> TrackerConfig:
    return TrackerConfig(
        confident=values["confident"], doubtful=values["doubtful"], patience=values["patience"]
    )


def _ours(changes: list[Parameter]) -> dict[str, Any]:
    """The changed parameters that the table has; use_sim_time and others are rclpy's."""
    return {change.name: change.value for change in changes if change.name in parameters.ROWS}


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Runs the node until it is told to stop, and ends the process; its exit status is 2 where the
    node could not start."""
    cv2.setNumThreads(1)  # its threads would fight with the net's
    try:
        status = _run(argv, Stop(status=0))
    except parameters.ParameterError as error:
        print(f"vil_tracker: {error}", file=sys.stderr)
        status = 2
    except Exception:
        traceback.print_exc()
        status = 1
    # Nothing is left to be done, and Python would take most of a second to take PyTorch apart; nor
    # is a worker waited for that is deep in a frame.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _run(argv: Sequence[str] | None, stop: Stop) -> int:
    """Returns the exit status."""
    rclpy.init(args=argv, signal_handler_options=SignalHandlerOptions.NO)
    node = TrackerNode()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stop.wake = lambda: executor.create_task(lambda: None)
    try:
        if node.values["autostart"] and not node.start(stop):
            return 2
        while not stop.is_set():
            executor.spin_once()
    finally:
        node.stop_working()
        node.destroy_node()
        rclpy.shutdown()
    return 0


if __name__ == "__main__":
    main()
