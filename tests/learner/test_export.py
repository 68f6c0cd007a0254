"""A model folder on a disk that does not take it: the one before stays, and one sentence says what is needed."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mmsr_ray.learner.durable import NotWritten
from mmsr_ray.learner.export import write_model


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Inside, the kernel refuses what is beyond: a real error out of safetensors' own writing."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_model_that_does_not_fit_leaves_the_one_before(tiny_model: Path, tmp_path: Path) -> None:
    folder = tmp_path / "best"
    write_model(folder, tiny_model, {"a": torch.zeros(10)}, "float32", {"best.json": b"1"})
    with (
        largest_file(1 << 20),
        pytest.raises(NotWritten, match=r"best was not written: File too large; it needs 3\.1 MiB and .* are free") as error,
    ):
        write_model(folder, tiny_model, {"a": torch.zeros(800_000)}, "float32", {"best.json": b"2"})
    assert len(str(error.value).splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["best"]
    assert (folder / "best.json").read_bytes() == b"1"
    write_model(folder, tiny_model, {"a": torch.zeros(800_000)}, "float32", {"best.json": b"2"})
    assert (folder / "best.json").read_bytes() == b"2"
