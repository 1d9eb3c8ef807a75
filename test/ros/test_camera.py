"""vil_tracker_ros.camera: what is refused on arrival, and that cv_bridge changes no pixel."""

from __future__ import annotations

import struct

import cv2
import numpy as np
import pytest
from sensor_msgs.msg import CompressedImage, Image

from vil_tracker_ros import camera
from vil_tracker_ros.camera import ENCODINGS, ImageError, image_to_bgr, kind_of, size_of, to_bgr

RNG = np.random.default_rng(0)
BGR = RNG.integers(0, 255, (6, 8, 3), dtype=np.uint8)


def raw(encoding: str = "bgr8", padding: int = 0, **changed: object) -> Image:
    """An image of noise, each row followed by ``padding`` stray bytes."""
    kind = ENCODINGS.get(encoding, ENCODINGS["bgr8"])
    row = 8 * kind.channels * np.dtype(kind.dtype).itemsize + padding
    pixels = RNG.integers(0, 255, (6, row), dtype=np.uint8)
    message = Image(height=6, width=8, encoding=encoding, step=row, data=pixels.tobytes())
    for name, value in changed.items():
        setattr(message, name, value)
    return message


def coded(suffix: str, size: tuple[int, int] = (8, 6)) -> bytes:
    return cv2.imencode(suffix, np.zeros((size[1], size[0], 3), np.uint8))[1].tobytes()


@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_the_size_of_every_encoding(encoding: str) -> None:
    assert size_of(raw(encoding, padding=4)) == (8, 6)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"encoding": "32FC1"}, "'32FC1' is not supported"),
        ({"encoding": "x" * 10_000}, f"'{'x' * 32}' is not supported"),
        ({"step": 5}, "step is 5"),
        ({"data": b"12"}, "data has 2 bytes"),
        ({"height": 0}, "8x0"),
        ({"width": 0, "step": 0}, "0x6"),
        ({"height": 2**32 - 1, "width": 2**32 - 1, "step": 2**32 - 1}, "needs 12884901885 bytes"),
    ],
)
def test_an_image_that_cannot_be_used_is_refused(changed: dict[str, object], words: str) -> None:
    with pytest.raises(ImageError, match=words):
        size_of(raw(**changed))


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_the_size_of_compressed_images(suffix: str) -> None:
    assert size_of(CompressedImage(format="any", data=coded(suffix, (123, 45)))) == (123, 45)


def test_the_size_of_a_jpeg_with_a_comment_and_fill_bytes() -> None:
    whole = coded(".jpg", (30, 20))
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 5) + b"hello"
    data = whole[:2] + b"\xff\xff" + comment + whole[2:]
    assert size_of(CompressedImage(data=data)) == (30, 20)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "0 bytes are neither a JPEG nor a PNG"),
        (b"hello, world", "neither"),
        (coded(".jpg")[:20], "end within"),
        (coded(".png")[:20], "end within"),
        (b"\xff\xd8" + bytes(100), "head is damaged"),
        # no walk over all of it, which would keep the node busy
        (b"\xff\xd8" + b"\xff" * 10**6, "head is damaged"),
        (b"\xff\xd8" + b"\xff\xfe\x00\x02" * 10**6, "head is damaged"),
    ],
)
def test_damaged_heads_are_refused(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        size_of(CompressedImage(data=data))


def test_a_few_bytes_that_claim_a_huge_image_are_refused_before_decoding() -> None:
    data = bytearray(coded(".png"))
    data[16:24] = struct.pack(">II", 50_000, 50_000)
    with pytest.raises(ImageError, match="50000x50000"):
        size_of(CompressedImage(data=bytes(data)))


def test_too_many_bytes_are_refused() -> None:
    message = raw()
    message.data = bytes(camera.MAX_BYTES + 1)
    with pytest.raises(ImageError, match="256000001 bytes is too large"):
        size_of(message)


@pytest.mark.parametrize("suffix", [".jpg", ".png"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_image_cut_short_is_refused(suffix: str, share: float) -> None:
    noise = RNG.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    data = cv2.imencode(suffix, noise)[1].tobytes()
    padded = CompressedImage(data=data + bytes(100))  # as some cameras do
    assert size_of(padded) == (80, 60)
    with pytest.raises(ImageError, match="truncated"):
        size_of(CompressedImage(data=data[: int(len(data) * share)]))


def test_kinds_are_printable() -> None:
    assert kind_of(raw()) == "bgr8"
    assert kind_of(CompressedImage(format="f" * 999)) == "f" * 32


def test_without_cv_bridge_our_own_conversion_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "BRIDGE", None)
    for encoding in ENCODINGS:
        message = raw(encoding, padding=5)
        np.testing.assert_array_equal(to_bgr(message), image_to_bgr(message))


def test_what_an_old_cv_bridge_does_not_know_is_converted_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Old:
        def imgmsg_to_cv2(self, message: Image, encoding: str) -> None:
            raise camera.CvBridgeError(f"Unrecognized image encoding [{message.encoding}]")

    monkeypatch.setattr(camera, "BRIDGE", Old())
    message = raw("yuv422_yuy2")
    np.testing.assert_array_equal(to_bgr(message), image_to_bgr(message))


@pytest.mark.skipif(camera.BRIDGE is None, reason="cv_bridge does not import here")
@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("padding", [0, 5, 24])
@pytest.mark.parametrize("encoding", list(ENCODINGS))
def test_cv_bridge_gives_the_same_pixels(encoding: str, padding: int, big: bool) -> None:
    message = raw(encoding, padding, is_bigendian=big)
    np.testing.assert_array_equal(to_bgr(message), image_to_bgr(message))
