"""What makes several processes compute what one process computes with all of their clips.

Averaged gradients alone do not: a batch norm's statistics and a weighted mean's sum of weights are
of the whole batch, so both are shared here. Every process must call these in the same order.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn


def process_count() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


class _Mean(torch.autograd.Function):
    """Mean over processes; the gradient of a mean is the mean of the gradients."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        dist.all_reduce(total)
        return total / dist.get_world_size()


def process_mean(x: Tensor) -> Tensor:
    """The mean of a tensor over all processes, with its gradient; ``x`` itself if there is one."""
    if process_count() == 1:
        return x
    mean: Tensor = _Mean.apply(x)  # type: ignore[no-untyped-call]
    return mean


def any_process(flag: bool, device: torch.device) -> bool:
    """Whether any process says yes; they all get the same answer."""
    return bool(process_mean(torch.tensor(float(flag), device=device)) > 0)


class SharedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm over the clips of all processes, on any device.

    torch's own SyncBatchNorm needs a GPU. Every process must hold equally many clips.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        wide = x.float()
        mean = process_mean(wide.mean((0, 2, 3)))
        centred = wide - mean[:, None, None]
        variance = process_mean(centred.square().mean((0, 2, 3)))
        self._remember(mean.detach(), variance.detach(), x.numel() // x.shape[1])
        scale = self.weight * torch.rsqrt(variance + self.eps)
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(x.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Renews the running statistics as `nn.BatchNorm2d` does, with the unbiased variance."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        count *= process_count()
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * count / max(count - 1, 1), self.momentum)
        self.num_batches_tracked.add_(1)


def share_batch_norms(module: nn.Module) -> None:
    """Puts a `SharedBatchNorm2d` with the same parameters in each batch norm's place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            shared = SharedBatchNorm2d(child.num_features, child.eps, child.momentum)
            shared.weight, shared.bias = child.weight, child.bias
            shared.load_state_dict(child.state_dict())
            setattr(module, name, shared)
        else:
            share_batch_norms(child)
