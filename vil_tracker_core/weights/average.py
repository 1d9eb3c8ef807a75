"""The mean of several stages' weights, tensor by tensor (a "model soup", arXiv 2203.05482).

Stages that start from one another stay in one basin of the loss, and the middle of what they found
tends to fit things that none of them has seen better than either end does.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vil_tracker_core.weights import Weights, WeightsError, checksum, load

RULE = "mean of the tensors"


def average(paths: Sequence[Path]) -> Weights:
    """The mean of weights files of one config, not calibrated, with the provenance of each.

    The sums are in float64; floating-point tensors come back as half precision. Counters, which are
    no weights, are the last file's.

    Raises:
        WeightsError: fewer than two files, one that cannot be read, or one of another config.
    """
    if len(paths) < 2:
        raise WeightsError("an average needs two weights files or more")
    loaded = [load(path) for path in paths]
    for path, each in zip(paths, loaded, strict=True):
        if each.config != loaded[0].config:
            raise WeightsError(
                f"{path} is of another config ({each.config.name}) than {paths[0]} "
                f"({loaded[0].config.name}): only nets of one shape have a mean"
            )
    tensors = {name: _mean([each.tensors[name] for each in loaded]) for name in loaded[0].tensors}
    averaged = [
        {"file": path.name, "checksum": checksum(each.tensors), "provenance": each.provenance}
        for path, each in zip(paths, loaded, strict=True)
    ]
    return Weights(loaded[0].config, tensors, provenance={"rule": RULE, "averaged": averaged})


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    if not tensors[0].is_floating_point():
        return tensors[-1]
    return torch.stack([each.double() for each in tensors]).mean(0).half()
