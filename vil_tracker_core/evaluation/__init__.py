"""Measuring trackers: metrics, benchmark runs, peers, rosbags and the report."""
