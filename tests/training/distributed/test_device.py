"""Device of a rank, and backend and timeout of process groups."""

from collections.abc import Callable
from datetime import timedelta

import pytest
import torch

from vigil_data.errors import UserError
from vigil_training.distributed.device import choose_device, process_group_backend, process_group_timeout
from vigil_training.distributed.world import World
from vigil_training.recipe.recipe import Recipe


@pytest.mark.parametrize(
    ("accelerator", "gpus", "local_rank", "device"),
    [("auto", 0, 1, "cpu"), ("auto", 2, 1, "cuda:1"), ("cpu", 2, 0, "cpu"), ("cuda", 2, 1, "cuda:1")],
)
def test_choose_device(
    monkeypatch: pytest.MonkeyPatch,
    make_recipe: Callable[..., Recipe],
    accelerator: str,
    gpus: int,
    local_rank: int,
    device: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    world = World(local_rank, 2, local_rank, 2)
    assert choose_device(make_recipe(training__accelerator=accelerator), world) == torch.device(device)


def test_choose_device_refuses_more_ranks_than_gpus(monkeypatch: pytest.MonkeyPatch, make_recipe: Callable[..., Recipe]) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match=r"training.accelerator: cuda, but this machine has 1 GPUs for 2 ranks"):
        choose_device(make_recipe(training__accelerator="cuda"), World(1, 2, 1, 2))


def test_process_groups_wait_longer_than_the_watchdog() -> None:
    assert process_group_timeout(100.0) == timedelta(seconds=150)
    assert process_group_backend(torch.device("cpu")) == "gloo"
    assert process_group_backend(torch.device("cuda", 0)) == "nccl"
