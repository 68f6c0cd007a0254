"""A version sent to receivers in one group, over gloo on this machine: whole, again and again, and an error on every side where a member is missing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from itertools import count

import pytest
import torch

from mmsr_ray.weights.collective import CollectiveFailed, Group, Meeting, open_store

HERE, CPU = "127.0.0.1", torch.device("cpu")
SECONDS = 4.0
WEIGHTS = {
    "embed": torch.randn(70, 30),
    "norm": torch.ones(30, dtype=torch.float64),
    "turned": torch.randn(8, 5).T,
    "scale": torch.tensor(0.25, dtype=torch.float64),
    "steps": torch.arange(7),
}
DIES = """
import json, os, sys, torch
from mmsr_ray.weights.collective import Group, Meeting
group = Group(Meeting(**json.loads(sys.argv[1])), 2, torch.device("cpu"), host="127.0.0.1")
next(group.receive("0"))
os._exit(1)
"""


class Members:
    """Receivers in threads, and the sender in this one."""

    def __init__(self, receivers: int, expected: int | None = None) -> None:
        store = open_store(HERE, SECONDS)
        self.meeting = Meeting("m", HERE, store.port, 1 + (expected or receivers), SECONDS)
        self.pool = ThreadPoolExecutor(receivers + 1)
        groups = [self.pool.submit(Group, self.meeting, rank, CPU, host=HERE) for rank in range(1, receivers + 1)]
        self.sender = self.pool.submit(Group, self.meeting, 0, CPU, host=HERE, store=store)
        self.groups = groups

    def receive(self, transfer: str) -> list[Future[dict[str, torch.Tensor]]]:
        return [self.pool.submit(lambda group=group: dict(group.result().receive(transfer))) for group in self.groups]


def test_every_receiver_gets_every_tensor_again_and_again() -> None:
    members = Members(2)
    sender = members.sender.result()
    for transfer, dtype in zip(count(), (torch.bfloat16, None, torch.float32)):
        received = members.receive(f"{transfer}")
        sent = sender.send(f"{transfer}", WEIGHTS.items(), dtype)
        cast = {name: w.to(dtype) if dtype is not None and w.is_floating_point() else w for name, w in WEIGHTS.items()}
        assert sent == sum(w.numel() * w.itemsize for w in cast.values())
        for one in received:
            assert list(one.result()) == list(WEIGHTS)
            for name, weight in cast.items():
                torch.testing.assert_close(one.result()[name], weight, rtol=0, atol=0)
    assert sender._store.num_keys() < 30, "headers of versions that all have must not add up"


def test_a_member_that_never_comes_is_an_error_for_all_within_the_deadline() -> None:
    began = time.monotonic()
    members = Members(1, expected=2)
    for one in (*members.groups, members.sender):
        with pytest.raises(CollectiveFailed, match="a group of 3 did not come together within 4 s"):
            one.result()
    assert time.monotonic() - began < 3 * SECONDS


def test_a_member_that_dies_half_way_is_an_error_for_the_others() -> None:
    members = Members(1, expected=2)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    dying = subprocess.Popen([sys.executable, "-c", DIES, json.dumps(asdict(members.meeting))], env=environment)
    (received,) = members.receive("0")
    large = ((f"{number}", torch.zeros(1 << 18)) for number in range(400))
    try:
        with pytest.raises(CollectiveFailed, match="a member was lost"):
            members.sender.result(timeout=30).send("0", large, None)
        with pytest.raises(CollectiveFailed):
            received.result(timeout=30)
    finally:
        dying.wait(30)


def test_receivers_hear_that_the_sender_gave_up() -> None:
    members = Members(2)
    sender = members.sender.result()

    def breaks() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        raise ZeroDivisionError

    received = members.receive("0")
    with pytest.raises(ZeroDivisionError):
        sender.send("0", breaks(), None)
    for one in received:
        with pytest.raises(CollectiveFailed, match="the sender gave the transfer up"):
            one.result()


def test_a_sender_that_says_nothing_is_an_error_within_the_deadline() -> None:
    members = Members(1)
    members.sender.result()
    began = time.monotonic()
    (received,) = members.receive("0")
    with pytest.raises(CollectiveFailed, match="not heard of for 4 s"):
        received.result()
    assert time.monotonic() - began < 2 * SECONDS


def test_a_receiver_that_falls_out_alone_is_an_error_for_the_sender() -> None:
    members = Members(2)
    sender = members.sender.result()
    whole, broken = members.groups
    received = members.pool.submit(lambda: dict(whole.result().receive("0")))
    first = members.pool.submit(lambda: list(zip(range(len(WEIGHTS)), broken.result().receive("0"), strict=False)))  # not to the end
    with pytest.raises(CollectiveFailed, match="not every receiver has got all of it"):
        sender.send("0", WEIGHTS.items(), None)
    assert list(received.result()) == list(WEIGHTS)
    assert len(first.result()) == len(WEIGHTS)
