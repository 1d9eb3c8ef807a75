"""vil_tracker_ros.pipeline: newest frame wins, services never wait, tracks catch up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from vil_tracker_core import weights
from vil_tracker_core.geometry import Box, Image
from vil_tracker_core.model.presets import preset
from vil_tracker_core.model.tracker import ViLTracker
from vil_tracker_core.tracking.network import Network, TorchNetwork
from vil_tracker_core.tracking.online import TrackerConfig, TrackState
from vil_tracker_ros.pipeline import (
    LONGEST_ID,
    NS,
    Frame,
    FrameResult,
    Pipeline,
    Refused,
    stamp_text,
)

PERIOD = NS // 30
BOX = Box(50, 40, 20, 16)


class Rig:
    """A pipeline on noise images, whose results and complaints are collected."""

    def __init__(
        self,
        network: Network,
        history: float = 5.0,
        memory: int = 10**9,
        max_tracks: int = 3,
        config: TrackerConfig | None = None,
    ) -> None:
        self.done: list[FrameResult] = []
        self.said: list[str] = []
        self.gate = threading.Event()  # while clear, decoding waits: the worker is busy
        self.gate.set()
        self.pipeline = Pipeline(
            network,
            config or TrackerConfig(),
            decode=self.decode,
            publish=self.done.append,
            report=self.said.append,
            history=history,
            memory=memory,
            max_tracks=max_tracks,
        )

    def decode(self, message: int) -> Image:
        self.gate.wait(10)
        if message < 0:
            raise ValueError("a broken image")
        return np.random.default_rng(message).integers(0, 255, (120, 160, 3), dtype=np.uint8)

    def offer(self, number: int, message: int | None = None) -> Frame:
        message = number if message is None else message
        frame = Frame((number + 1) * PERIOD, message, (160, 120), 57_600)
        self.pipeline.offer(frame)
        return frame

    def start(self, track_id: str = "", stamp_ns: int = 0, box: Box = BOX) -> tuple[Frame, str]:
        return self.pipeline.start_track(lambda width, height: box, track_id, stamp_ns)

    def stamps(self, track_id: str) -> list[int]:
        return [done.frame.stamp_ns for done in self.done if track_id in done.results]


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "waited 10 s in vain"
        time.sleep(0.002)


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    config = preset("vil_tiny")
    return TorchNetwork(weights.Weights(config, ViLTracker(config).state_dict()))


@pytest.fixture
def rig(network: Network) -> Iterator[Rig]:
    made = Rig(network)
    yield made
    made.gate.set()
    made.pipeline.close()


def test_every_frame_is_answered_once_without_tracks(rig: Rig) -> None:
    for number in range(3):
        frame = rig.offer(number)
        wait(lambda frame=frame: bool(rig.done) and rig.done[-1].frame is frame)
    assert [done.results for done in rig.done] == [{}, {}, {}]


def test_a_track_is_answered_from_its_first_frame_on(rig: Rig) -> None:
    rig.offer(0)
    frame, name = rig.start()
    assert (frame.stamp_ns, name) == (PERIOD, "track_1")
    wait(lambda: bool(rig.stamps(name)))
    for number in (1, 2):
        rig.offer(number)
        wait(lambda number=number: len(rig.stamps(name)) == number + 1)
    assert rig.stamps(name) == [PERIOD, 2 * PERIOD, 3 * PERIOD]
    assert [d.infos[name].frames for d in rig.done if name in d.infos] == [1, 2, 3]


def test_the_newest_frame_replaces_one_that_waits_and_is_counted(rig: Rig) -> None:
    rig.offer(0)
    _, name = rig.start()
    wait(lambda: bool(rig.stamps(name)))
    rig.gate.clear()
    rig.offer(1)
    wait(lambda: rig.pipeline._waiting is None)  # the worker has it in hand
    for number in (2, 3, 4):
        rig.offer(number)
    rig.gate.set()
    wait(lambda: 5 * PERIOD in rig.stamps(name))
    assert rig.stamps(name) == [PERIOD, 2 * PERIOD, 5 * PERIOD]
    assert rig.done[-1].dropped == 2


def test_a_request_is_answered_while_a_frame_is_in_work(rig: Rig) -> None:
    rig.offer(0)
    rig.start("a")
    rig.gate.clear()
    rig.offer(1)
    # these return although the worker cannot move
    rig.start("b")
    assert rig.pipeline.stop_track("b") == ["b"]
    with pytest.raises(Refused, match="no track 'b'"):
        rig.pipeline.stop_track("b")
    rig.gate.set()
    wait(lambda: 2 * PERIOD in rig.stamps("a"))
    assert rig.stamps("b") == []


def test_a_track_started_on_a_past_frame_catches_up(rig: Rig) -> None:
    for number in range(5):
        frame = rig.offer(number)
        wait(lambda frame=frame: rig.done[-1].frame is frame if rig.done else False)
    rig.start("late", stamp_ns=2 * PERIOD)
    wait(lambda: len(rig.stamps("late")) == 4)
    rig.offer(5)
    wait(lambda: len(rig.stamps("late")) == 5)
    assert rig.stamps("late") == [number * PERIOD for number in (2, 3, 4, 5, 6)]


def test_catching_up_gives_what_following_from_the_start_gives(network: Network) -> None:
    def boxes(late: bool) -> list[Box]:
        rig = Rig(network)
        for number in range(4):
            frame = rig.offer(number)
            if number == 0 and not late:
                rig.start("t")
            wait(
                lambda frame=frame: bool(rig.done) and rig.done[-1].frame.stamp_ns == frame.stamp_ns
            )
        if late:
            rig.start("t", stamp_ns=PERIOD)
        wait(lambda: len(rig.stamps("t")) == 4)
        rig.pipeline.close()
        return [done.results["t"].box for done in rig.done if "t" in done.results]

    np.testing.assert_allclose(boxes(late=True), boxes(late=False), atol=1e-4)


@pytest.mark.parametrize(
    ("box", "words"),
    [
        (Box(500, 500, 10, 10), "lies outside the 160x120 image"),
        (Box(10, 10, 0, 5), "is empty"),
        (Box(float("nan"), 10, 5, 5), "is not finite"),
    ],
)
def test_a_bad_box_is_refused(rig: Rig, box: Box, words: str) -> None:
    rig.offer(0)
    with pytest.raises(Refused, match=words):
        rig.start(box=box)


def test_refusals_name_their_reason(rig: Rig) -> None:
    with pytest.raises(Refused, match="no image has been received"):
        rig.start()
    rig.offer(0)
    rig.offer(1)
    with pytest.raises(Refused, match=r"no frame with stamp 9\.0.* 2 frames"):
        rig.start(stamp_ns=9 * NS)
    for name in "abc":
        rig.start(name)
    with pytest.raises(Refused, match="'a' is in use"):
        rig.start("a")
    with pytest.raises(Refused, match="max_tracks"):
        rig.start("d")
    with pytest.raises(Refused, match="65 letters, 64 at most"):
        rig.start("e" * (LONGEST_ID + 1))


def test_stamps_are_written_to_the_nanosecond(rig: Rig) -> None:
    ns = 1_704_067_207_600_000_001  # as a float, 95 ns less
    assert stamp_text(ns) == "1704067207.600000001"
    rig.pipeline.offer(Frame(ns, 0, (160, 120), 57_600))
    held = r"stamp 1704067207\.600000000 .* from 1704067207\.600000001 to 1704067207\.600000001"
    with pytest.raises(Refused, match=held):
        rig.start(stamp_ns=ns - 1)


def test_old_frames_are_let_go(network: Network) -> None:
    rig = Rig(network, history=0.1)
    for number in range(10):
        rig.offer(number)
    with pytest.raises(Refused, match="4 frames"):
        rig.start(stamp_ns=PERIOD)
    rig.offer(0)  # time jumped back: nothing of the old stream is held
    assert rig.start("t")[0].stamp_ns == PERIOD
    with pytest.raises(Refused, match="1 frames"):
        rig.start("u", stamp_ns=9 * PERIOD)
    rig.pipeline.close()


def test_frames_are_held_within_their_memory(network: Network) -> None:
    rig = Rig(network, memory=3 * 57_600 + 1)
    for number in range(10):
        rig.offer(number)
    with pytest.raises(Refused, match=r"3 frames from 0\.26.* to 0\.33.*init_memory"):
        rig.start(stamp_ns=7 * PERIOD)
    rig.pipeline.close()
    rig = Rig(network, memory=1)  # the newest frame is held in any case
    rig.offer(0)
    assert rig.start("t")[0].stamp_ns == PERIOD
    rig.pipeline.close()


def test_a_track_starting_on_the_newest_frame_shares_its_answer(rig: Rig) -> None:
    rig.offer(0)
    rig.start("a")
    wait(lambda: bool(rig.stamps("a")))
    rig.gate.clear()
    rig.offer(1)
    wait(lambda: rig.pipeline._waiting is None)  # the worker has it in hand
    rig.offer(2)
    rig.start("b")
    rig.gate.set()
    wait(lambda: 3 * PERIOD in rig.stamps("a"))
    assert [list(done.results) for done in rig.done] == [["a"], ["a"], ["a", "b"]]


def test_others_are_answered_while_a_track_catches_up(rig: Rig) -> None:
    for number in range(8):
        rig.offer(number)
        if number == 0:
            rig.start("on time")
        wait(lambda number=number: (number + 1) * PERIOD in rig.stamps("on time"))
    turns = len(rig.done)
    rig.gate.clear()
    rig.start("late", stamp_ns=PERIOD)
    rig.offer(8)
    rig.gate.set()
    wait(lambda: 9 * PERIOD in rig.stamps("late"))
    rig.offer(9)
    wait(lambda: 10 * PERIOD in rig.stamps("late") and 10 * PERIOD in rig.stamps("on time"))
    assert rig.stamps("on time") == [number * PERIOD for number in range(1, 11)]
    assert rig.stamps("late") == [number * PERIOD for number in range(1, 11)]
    # the one on time did not wait for all that the late one had to see
    later = [done.frame.stamp_ns for done in rig.done[turns:] if "on time" in done.results]
    assert later[0] == 9 * PERIOD
    order = [(list(done.results), done.late) for done in rig.done[turns:]]
    assert (["on time"], False) in order[:3]
    assert order[-1] == (["on time", "late"], False)


def test_a_track_can_be_stopped_while_it_catches_up(rig: Rig) -> None:
    for number in range(6):
        frame = rig.offer(number)
        wait(lambda frame=frame: bool(rig.done) and rig.done[-1].frame is frame)
    rig.gate.clear()
    rig.start("late", stamp_ns=PERIOD)
    assert rig.pipeline.stop_track("late") == ["late"]
    rig.gate.set()
    rig.offer(6)
    wait(lambda: rig.done[-1].frame.stamp_ns == 7 * PERIOD)
    assert rig.stamps("late") == []


def test_thresholds_change_under_a_running_track(rig: Rig) -> None:
    rig.offer(0)
    rig.start("t")
    wait(lambda: bool(rig.stamps("t")))
    # no score of the net is this high, and no time passes until an unseen track is lost
    rig.pipeline.configure(TrackerConfig(confident=1.0, doubtful=1.0, patience=0.0))
    rig.offer(1)
    wait(lambda: 2 * PERIOD in rig.stamps("t"))
    assert rig.done[-1].results["t"].state is TrackState.LOST


def test_a_replaced_frame_that_is_caught_up_with_was_not_dropped(rig: Rig) -> None:
    rig.offer(0)
    rig.start("a")
    wait(lambda: bool(rig.stamps("a")))
    rig.gate.clear()
    rig.offer(1)
    wait(lambda: rig.pipeline._waiting is None)
    for number in (2, 3, 4):
        rig.offer(number)
    rig.gate.set()
    wait(lambda: 5 * PERIOD in rig.stamps("a"))
    assert rig.done[-1].dropped == 2
    rig.start("late", stamp_ns=3 * PERIOD)
    wait(lambda: 5 * PERIOD in rig.stamps("late"))
    assert rig.stamps("late") == [3 * PERIOD, 4 * PERIOD, 5 * PERIOD]
    assert rig.done[-1].dropped == 0


def test_what_was_never_received_counts_as_dropped(rig: Rig) -> None:
    rig.pipeline.miss(3)
    frame = rig.offer(0)
    wait(lambda: bool(rig.done) and rig.done[-1].frame is frame)
    assert rig.done[-1].dropped == 3


def test_a_result_that_cannot_be_published_is_reported(network: Network) -> None:
    rig = Rig(network)
    rig.pipeline._publish = lambda done: (_ for _ in ()).throw(RuntimeError("no subscriber"))
    rig.offer(0)
    wait(lambda: bool(rig.said))
    assert rig.said == ["results could not be published: no subscriber"]
    rig.pipeline._publish = rig.done.append
    rig.offer(1)
    wait(lambda: bool(rig.done))
    rig.pipeline.close()


def test_a_frame_that_cannot_be_read_is_reported_and_the_track_goes_on(rig: Rig) -> None:
    rig.offer(0)
    _, name = rig.start()
    wait(lambda: bool(rig.stamps(name)))
    rig.offer(1, message=-1)
    wait(lambda: bool(rig.said))
    assert "a broken image" in rig.said[0]
    rig.offer(2)
    wait(lambda: 3 * PERIOD in rig.stamps(name))


def test_closing_ends_the_thread(network: Network) -> None:
    rig = Rig(network)
    before = threading.active_count()
    assert rig.pipeline.close()
    assert threading.active_count() == before - 1


def test_closing_does_not_wait_for_a_frame_that_takes_long(rig: Rig) -> None:
    rig.offer(0)
    rig.start("t")
    wait(lambda: bool(rig.done))
    answered = len(rig.done)
    rig.gate.clear()
    rig.offer(1)
    wait(lambda: rig.pipeline._waiting is None)
    assert not rig.pipeline.close()
    rig.gate.set()
    rig.pipeline._thread.join(10)
    assert not rig.pipeline._thread.is_alive()
    assert len(rig.done) == answered  # nothing was published after the closing
