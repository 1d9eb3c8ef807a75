"""Two processes compute what one computes with all of their clips: real processes, over gloo."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from vil_tracker_core.training.config import TrainConfig
from vil_tracker_core.training.loop import train
from vil_tracker_core.training.parallel import (
    SharedBatchNorm2d,
    any_process,
    process_count,
    process_mean,
    share_batch_norms,
)

MakeConfig = Callable[..., TrainConfig]

# What each of the two runs: the parts, then a training run.
PROGRAM = """
import sys
from pathlib import Path
import torch
from accelerate import Accelerator
from vil_tracker_core.training.config import load_config
from vil_tracker_core.training.loop import train
from vil_tracker_core.training.parallel import any_process, process_count, process_mean

torch.set_num_threads(1)
rank = Accelerator(cpu=True).process_index
assert process_count() == 2
cpu = torch.device("cpu")
assert any_process(rank == 1, cpu) and any_process(True, cpu) and not any_process(False, cpu)

# y = mean over processes of a; each process's loss is (rank + 1) * y^2
a = torch.tensor(3.0 + 2 * rank, requires_grad=True)
y = process_mean(a)
assert y.item() == 4.0
((rank + 1) * y**2).backward()
# d(sum of losses)/da = 3 * 2 * y * 1/2
assert a.grad.item() == 12.0

train(load_config(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_twice(*arguments: object) -> None:
    """PROGRAM in two processes that know of each other; both must end well."""
    settings = {
        "WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
        "GLOO_SOCKET_IFNAME": "lo",
        "ACCELERATE_USE_CPU": "true",
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *map(str, arguments)],
            env={**os.environ, **settings, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [process.communicate(timeout=300)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, said, strict=True):
        assert process.returncode == 0, text


def test_two_processes_are_one_with_the_doubled_batch(
    make_config: MakeConfig, fear_folder: Path, tmp_path: Path
) -> None:
    """Every loss and every batch norm, with unequal numbers of visible targets: AdamW's first
    average is a tenth of the gradient that it got."""
    config = make_config(
        {"absent": 0.4},
        steps=1,
        batch=4,
        frames=2,
        accumulate=2,
        clip_norm=1e9,
        losses={"contrastive": 0.5},
        adaptive_losses=True,
        teacher={
            "kind": "fear_xs",
            "folder": fear_folder,
            "block": 2,
            "score_weight": 0.5,
            "box_weight": 0.5,
        },
    )
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    train(config, tmp_path / "one")
    run_twice(path, tmp_path / "two")

    logs = [json.loads((tmp_path / run / "log.jsonl").read_text()) for run in ("one", "two")]
    assert logs[0] == pytest.approx(logs[1], rel=1e-4, abs=2e-5)
    one, two = (load_file(tmp_path / run / "checkpoint.safetensors") for run in ("one", "two"))
    assert set(one) == set(two)
    gradients = [name for name in one if name.endswith(".exp_avg")]
    assert len(gradients) > 100
    largest = max(one[name].abs().max().item() for name in gradients)
    for name in gradients:
        difference = (one[name] - two[name]).abs().max().item()
        assert difference < 1e-4 * largest, name
    statistics = [name for name in one if name.startswith("student.") and "running" in name]
    assert statistics
    for name in statistics:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_alone_nothing_is_shared() -> None:
    assert process_count() == 1
    x = torch.randn(3)
    assert process_mean(x) is x
    assert any_process(True, x.device)
    assert not any_process(False, x.device)


def test_shared_norm_alone_is_batch_norm() -> None:
    torch.manual_seed(0)
    plain = nn.BatchNorm2d(5)
    with torch.no_grad():
        plain.weight.uniform_(0.5, 2)
        plain.bias.uniform_(-1, 1)
    holder = nn.Sequential(nn.Identity(), nn.Sequential(nn.BatchNorm2d(5)))
    holder[1][0].load_state_dict(plain.state_dict())
    parameter = holder[1][0].weight
    share_batch_norms(holder)
    shared = holder[1][0]
    assert isinstance(shared, SharedBatchNorm2d)
    assert shared.weight is parameter, "an optimiser may hold it already"
    inputs = [(3 + 2 * torch.randn(4, 5, 6, 6)).requires_grad_() for _ in range(1)] * 2
    for _ in range(2):
        made = [norm(x) for norm, x in zip((plain, shared), inputs, strict=True)]
        torch.testing.assert_close(made[0], made[1], rtol=1e-4, atol=1e-5)
        weights = torch.randn_like(made[0])
        grads = [torch.autograd.grad((out * weights).sum(), inputs[0])[0] for out in made]
        torch.testing.assert_close(grads[0], grads[1], rtol=1e-3, atol=1e-5)
    for name, value in plain.state_dict().items():
        torch.testing.assert_close(shared.state_dict()[name], value, rtol=1e-4, atol=1e-5)
    plain.eval()
    shared.eval()
    torch.testing.assert_close(plain(inputs[0]), shared(inputs[0]), rtol=1e-4, atol=1e-5)
