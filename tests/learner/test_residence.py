"""What a rank takes along when it leaves its device, of what DeepSpeed leaves behind."""

from __future__ import annotations

import torch

from mmsr_ray.learner.residence import Frozen


def test_frozen_weights_lie_in_one_piece_of_host_memory_while_away_and_come_back_unchanged() -> None:
    layer = torch.nn.Sequential(torch.nn.Linear(5, 3), torch.nn.Linear(3, 2, bias=False)).requires_grad_(False)
    before = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    parameters = list(layer.parameters())
    frozen = Frozen(parameters, torch.device("cpu"))
    for _ in range(2):
        frozen.leave()
        frozen.leave()  # who has left stays away
        (room,) = {parameter.untyped_storage().data_ptr() for parameter in parameters}
        assert parameters[0].untyped_storage().nbytes() == 4 * sum(tensor.numel() for tensor in before.values())
        for parameter in parameters:  # a device gives them memory of their own, which a CPU does not
            parameter.data = parameter.data.clone()
        frozen.leave()
        assert {parameter.untyped_storage().data_ptr() for parameter in parameters} == {room}, "it is made once"
        frozen.come_back()
        assert all(now is then for now, then in zip(layer.parameters(), parameters, strict=True))
        for name, parameter in layer.named_parameters():
            assert torch.equal(parameter, before[name])


def test_without_frozen_weights_nothing_happens() -> None:
    frozen = Frozen([], torch.device("cpu"))
    frozen.leave()
    frozen.come_back()
