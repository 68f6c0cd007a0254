"""Checkpoint files as DeepSpeed's plug writes and reads them: the whole weights are mapped where that is safe, and lie in a file once."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mmsr_ray.learner.consolidate import PLAIN
from mmsr_ray.learner.shards import ShardWriter

ZERO, NONE = SimpleNamespace(zero_optimization=lambda: True), SimpleNamespace(zero_optimization=lambda: False)


def saved(shards: ShardWriter, path: Path, state: dict[str, torch.Tensor]) -> Path:
    shards.begin(path.parent)
    shards.save(state, str(path))
    assert not shards.report.error
    return path


@pytest.mark.parametrize(
    ("engine", "name", "mapped"),
    [(ZERO, PLAIN, True), (ZERO, "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", False), (NONE, PLAIN, False)],
)
def test_ranks_of_one_node_map_the_whole_weights_and_nothing_else(tmp_path: Path, engine: SimpleNamespace, name: str, mapped: bool) -> None:
    """What is not mapped may outlive the file: an optimiser on the host keeps the tensors that it is given."""
    shards = ShardWriter.plug_into(engine)
    path = saved(shards, tmp_path / name, {"weight": torch.arange(100_000)})
    found = shards.load(str(path), map_location=lambda storage, _: storage)
    assert torch.equal(found["weight"], torch.arange(100_000))
    assert (str(path) in Path("/proc/self/maps").read_text()) == mapped


def test_a_weight_that_does_not_learn_is_not_copied_and_lies_in_the_file_once(tmp_path: Path) -> None:
    shards = ShardWriter.plug_into(ZERO)
    with pytest.raises(NotImplementedError):
        torch.empty(3, device="meta").cpu()  # so that the next line would tell of a copy to the host
    assert ZERO._get_param_fragment_func(torch.nn.Parameter(torch.empty(3, device="meta"))).shape == (3,)

    weight = torch.nn.Parameter(torch.rand(100_000), requires_grad=False)
    fragment = ZERO._get_param_fragment_func(weight)
    path = saved(shards, tmp_path / PLAIN, {"module": weight.detach(), "frozen_param_fragments": fragment})
    assert 400_000 < path.stat().st_size < 410_000


def test_a_part_of_a_weight_under_zero_3_is_this_ranks(tmp_path: Path) -> None:
    ShardWriter.plug_into(ZERO)
    part = torch.arange(4.0)
    found = ZERO._get_param_fragment_func(SimpleNamespace(ds_id=0, ds_tensor=part))
    assert torch.equal(found, part)
