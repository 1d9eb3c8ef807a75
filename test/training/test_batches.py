"""Clips with a teacher's word on them, and which process takes which."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.training.batches import ShareOfProcess, TaughtClips
from vil_tracker_core.training.config import TrainConfig

MakeConfig = Callable[..., TrainConfig]


def test_processes_share_each_batch(make_config: MakeConfig) -> None:
    config = make_config(batch=4, accumulate=2, steps=3)
    shares = [list(ShareOfProcess(config, rank, 2, 0)) for rank in range(2)]
    assert shares[0][:4] == [0, 1, 4, 5]
    assert shares[1][:4] == [2, 3, 6, 7]
    assert sorted(shares[0] + shares[1]) == list(range(24))
    assert len(ShareOfProcess(config, 0, 2, 0)) == 12


def test_share_after_a_resumption_is_the_rest(make_config: MakeConfig) -> None:
    config = make_config(batch=4, accumulate=2, steps=3)
    whole, rest = (ShareOfProcess(config, 1, 2, first) for first in (0, 4))
    assert list(rest) == list(whole)[8:]
    assert len(rest) == 4


def test_batch_that_cannot_be_shared_is_refused(make_config: MakeConfig) -> None:
    with pytest.raises(DataError, match="batch 4 is not a multiple of the 3 processes"):
        ShareOfProcess(make_config(batch=4), 0, 3, 0)


def test_teacher_answers_for_its_share_of_the_clips(
    make_config: MakeConfig, fear_folder: Path
) -> None:
    """Of the others it says nothing: an answer of 0 overlaps no truth, so nobody trusts it."""

    def answered(share: float) -> list[bool]:
        teacher = {"kind": "fear_xs", "folder": fear_folder, "block": 0, "feature_weight": 0.0}
        teacher |= {"score_weight": 1.0, "share": share}
        clips = TaughtClips(make_config(data={"absent": 0.0}, teacher=teacher))
        return [bool(clips[index]["taught_boxes"].any()) for index in range(12)]

    assert answered(1.0) == 12 * [True]
    assert answered(0.25) == 3 * [False, False, False, True]
