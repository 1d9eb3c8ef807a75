"""One-object tracking with a Vision-LSTM network: model, training, online tracker, evaluation.

Nothing below this package imports ROS; the node lives in ``vil_tracker_ros``.
"""

__version__ = "0.1.0"
