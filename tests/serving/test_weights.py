"""Which model folders a service takes in the place of the one that it serves."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from mmsr_ray.config import load
from mmsr_ray.learner.durable import replace_folder
from mmsr_ray.serving.canary import Canary
from mmsr_ray.serving.errors import Refused
from mmsr_ray.serving.weights import Weights, fits, tensors

RELEASED = {"model.layers.0.mlp.up_proj.weight": (4, 2), "model.embed_tokens.weight": (8, 2), "visual.merger.ln_q.weight": (2,)}
WRITTEN_BY_A_RUN = {
    "model.language_model.layers.0.mlp.up_proj.weight": (4, 2),
    "model.language_model.embed_tokens.weight": (8, 2),
    "model.visual.merger.ln_q.weight": (2,),
}


def folder(path: Path, shapes: dict[str, tuple[int, ...]], dtype: torch.dtype = torch.bfloat16) -> str:
    path.mkdir()
    save_file(
        {name: torch.zeros(shape, dtype=dtype) for name, shape in {**shapes, "lm_head.weight": (8, 2)}.items()}, path / "model.safetensors"
    )
    return str(path)


def test_a_run_continues_a_released_model_though_it_spells_the_names_of_weights_in_another_way(tmp_path: Path) -> None:
    released, trained = folder(tmp_path / "hub", RELEASED), folder(tmp_path / "best", WRITTEN_BY_A_RUN)
    fits(released, trained)
    fits(trained, released)


def test_another_model_is_refused(tmp_path: Path) -> None:
    released = folder(tmp_path / "hub", RELEASED)
    larger = folder(tmp_path / "larger", WRITTEN_BY_A_RUN | {"model.visual.merger.ln_q.weight": (3,)})
    with pytest.raises(Refused, match=r"1 weights differ in name, shape or dtype \(visual.merger.ln_q.weight\)"):
        fits(released, larger)
    other = folder(tmp_path / "other", WRITTEN_BY_A_RUN, torch.float32)
    with pytest.raises(Refused, match="4 weights differ"):
        fits(released, other)


def test_a_folder_that_is_replaced_while_it_is_read_is_not_served_as_a_mixture(tmp_path: Path) -> None:
    best = Path(folder(tmp_path / "best", RELEASED))
    assert {name for name, _ in tensors(str(best))} == {*RELEASED, "lm_head.weight"}
    reading = tensors(str(best))
    next(reading)
    replace_folder(Path(folder(tmp_path / "new", RELEASED)), best)
    with pytest.raises(Refused, match="replaced while it was read"):
        list(reading)


class WithoutStore(Weights):
    """A folder takes as long to publish as `read` says; there is no Ray here for a store."""

    def __init__(self, served: str) -> None:
        self._config = load(None, [f"model.path={served}", "data.train=none", "data.test=none"])
        self._canary, self._published, self._paths, self._one_at_a_time = Canary(60.0), 0, {}, asyncio.Lock()
        self.read, self.published = asyncio.Event(), asyncio.Event()

    async def _publish(self, version: int, path: str) -> None:
        await self.read.wait()
        self._published = version
        self.published.set()


async def test_what_has_begun_is_brought_in_though_who_asked_does_not_wait_for_it(tmp_path: Path) -> None:
    weights = WithoutStore(folder(tmp_path / "hub", RELEASED))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(weights.bring_in(folder(tmp_path / "best", WRITTEN_BY_A_RUN)), 0.5)
    weights.read.set()
    await asyncio.wait_for(weights.published.wait(), 10)
    assert (await weights.state())["target"] == 1
