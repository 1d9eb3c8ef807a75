"""Teachers whose knowledge serves as a target, and the loss that compares with it."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vil_tracker_core.data.sequence import DataError
from vil_tracker_core.geometry import Image


class Teacher(Protocol):
    """Dense features of a search crop, on a grid of the teacher's own."""

    channels: int

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        """(channels, g, g) of one crop (3, S, S) uint8 RGB."""
        ...


class OnnxTeacher:
    """One tensor of an ONNX network that takes a (1, 3, size, size) RGB image of 0..255.

    Args:
        path: the .onnx file.
        tensor: name of the tensor, (1, channels, g, g), which need not be an output.
        image: name of the input.
    """

    def __init__(self, path: Path, tensor: str, image: str = "image") -> None:
        import onnx
        import onnxruntime
        from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

        path = Path(path)
        if not path.is_file():
            raise DataError(f"teacher {path} is missing")
        try:
            known = onnx.shape_inference.infer_shapes(onnx.load(str(path)))
        except (DecodeError, onnx.shape_inference.InferenceError) as error:
            raise DataError(f"teacher {path} is not a readable ONNX network: {error}") from None
        graph = known.graph
        names = {value.name for value in (*graph.input, *graph.value_info, *graph.output)}
        for name in (image, tensor):
            if name not in names:
                raise DataError(f"teacher {path} has no tensor {name!r}")
        part = onnx.utils.Extractor(known).extract_model([image], [tensor])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 3
        self.session = onnxruntime.InferenceSession(
            part.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self.image = image
        self.size = int(self.session.get_inputs()[0].shape[-1])
        blank = np.zeros((3, self.size, self.size), dtype=np.uint8)
        self.channels = 0
        self.channels = len(self.features(blank))

    def features(self, search: Image) -> npt.NDArray[np.float16]:
        image = search.transpose(1, 2, 0)
        if image.shape[0] != self.size:
            size = (self.size, self.size)
            image = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR).astype(np.uint8)
        batch = image.transpose(2, 0, 1)[None].astype(np.float32)
        (found,) = self.session.run(None, {self.image: batch})
        return np.asarray(found[0], dtype=np.float16)


class FeatureDistillation(nn.Module):
    """Asks that a linear map of the student's tokens points where the teacher's features point.

    The teacher's grid is resampled to the student's. Loss: 1 - cosine, mean over cells.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        self.map = nn.Linear(dim, channels)

    def forward(self, tokens: Tensor, wanted: Tensor) -> Tensor:
        """Args: tokens (B, G * G, dim) of the student; wanted (B, channels, g, g)."""
        grid = int(tokens.shape[1] ** 0.5)
        wanted = wanted.float()
        if wanted.shape[-1] != grid:
            wanted = F.interpolate(wanted, (grid, grid), mode="bilinear", align_corners=False)
        made = self.map(tokens).float()
        return (1 - torch.cosine_similarity(made, wanted.flatten(2).transpose(1, 2), dim=-1)).mean()
