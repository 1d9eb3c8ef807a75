"""Settings of every test: one thread, the same examples each run, no time limit an example."""

import os

# Before the first import of torch and OpenCV, which read them once.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import cv2
import hypothesis
import pytest
import torch

torch.set_num_threads(1)
cv2.setNumThreads(1)

# A loaded machine must not fail a test: no deadline. derandomize keeps a CI run repeatable.
hypothesis.settings.register_profile("vil", deadline=None, derandomize=True)
hypothesis.settings.load_profile("vil")


@pytest.fixture(scope="session")
def bfloat16() -> None:
    """Skips a test where the CPU would only emulate that precision."""
    from vil_tracker_core.tracking.graphs import has_bfloat16

    if not has_bfloat16():
        pytest.skip("this CPU has no bfloat16 arithmetic")
