"""config/fastdds.xml: raw best-effort images arrive in another process."""

from __future__ import annotations

import subprocess
import sys
import time

import rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image

WIDTH, HEIGHT, FRAMES = 1280, 720, 40
BEST_EFFORT = QoSProfile(depth=FRAMES, reliability=ReliabilityPolicy.BEST_EFFORT)
LISTENER = f"""
import time, rclpy
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image
rclpy.init()
node = rclpy.create_node("listener")
heard = set()
node.create_subscription(
    Image, "image", lambda message: heard.add(message.header.stamp.sec),
    QoSProfile(depth={FRAMES}, reliability=ReliabilityPolicy.BEST_EFFORT),
)
end = time.monotonic() + 60
while len(heard) < {FRAMES} and time.monotonic() < end and {FRAMES} not in heard:
    rclpy.spin_once(node, timeout_sec=1.0)
print(len(heard))
"""


def test_every_720p_frame_arrives(domain: int) -> None:
    """With Fast DDS's own transports one in ten does, or none."""
    rclpy.init()
    node = rclpy.create_node("camera")
    try:
        publisher = node.create_publisher(Image, "image", BEST_EFFORT)
        message = Image(width=WIDTH, height=HEIGHT, encoding="bgr8", step=3 * WIDTH)
        message.data = bytes(3 * WIDTH * HEIGHT)
        with subprocess.Popen(
            [sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True
        ) as listener:
            end = time.monotonic() + 60
            while node.count_subscribers("image") == 0 and time.monotonic() < end:
                time.sleep(0.1)
            time.sleep(1.0)  # both sides know of each other
            for number in range(1, FRAMES + 1):
                message.header.stamp.sec = number
                publisher.publish(message)
                time.sleep(1 / 30)
            heard, _ = listener.communicate(timeout=90)
    finally:
        node.destroy_node()
        rclpy.shutdown()
    assert int(heard) >= 0.9 * FRAMES
