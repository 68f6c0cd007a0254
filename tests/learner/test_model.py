from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from mmsr_ray.learner import model as model_module
from mmsr_ray.learner.batch import BatchError, MicroBatch, Row, TokenIds, collate
from mmsr_ray.learner.model import Entropy, ModelError, Policy, load_policy, named_weights, wrap
from mmsr_ray.learner.pictures import PatchCache
from tests.learner.conftest import IMAGE_PAD, make_config, make_policy, make_row

ROWS = [
    make_row(1, length=30),
    make_row(2, length=61, pictures=((56, 56, 0), (28, 28, 7), (28, 28, 8))),
    make_row(3, length=45, pictures=((112, 56, 4), (28, 28, 7))),
    make_row(4, length=20, pictures=()),
]


def batch_of(policy: Policy, rows: list[Row], cache: PatchCache, packed: bool = False) -> MicroBatch:
    return collate(rows, packed=packed, ids=policy.token_ids, cache=cache)


def plain_logprobs(policy: Policy, row: Row, cache: PatchCache) -> torch.Tensor:
    """The row alone through transformers' own forward, its own attention and its own positions."""
    tokens = row.tokens
    ids = torch.from_numpy(tokens.ids.astype(np.int64))[None]
    vision = {}
    if tokens.pictures:
        vision = {
            "pixel_values": torch.cat([cache.get(p)[0] for p in tokens.pictures]),
            "image_grid_thw": torch.from_numpy(tokens.grids.astype(np.int64)),
        }
    fresh = type(policy.hf)(make_config())
    fresh.load_state_dict(policy.hf.state_dict())
    with torch.no_grad():
        logits = fresh(input_ids=ids, attention_mask=torch.ones_like(ids), mm_token_type_ids=(ids == IMAGE_PAD).int(), **vision).logits[0]
    where = torch.from_numpy(np.flatnonzero(tokens.loss_mask))
    logits[:, policy.banned_ids] -= 100.0  # what the engine does when it samples
    return logits[where - 1].log_softmax(-1).gather(-1, ids[0, where][:, None])[:, 0]


@pytest.mark.parametrize("packed", [False, True])
def test_logprobs_equal_transformers_row_by_row(policy: Policy, cache: PatchCache, packed: bool) -> None:
    with torch.no_grad():
        found = policy(batch_of(policy, ROWS, cache, packed)).logprobs
    expected = torch.cat([plain_logprobs(policy, row, cache) for row in ROWS])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def gradients(policy: Policy, cache: PatchCache, cuts: list[list[Row]], packed: bool) -> dict[str, torch.Tensor]:
    policy.zero_grad()
    for rows in cuts:
        output = policy(batch_of(policy, rows, cache, packed), entropy=Entropy.TRAINED)
        assert output.entropy is not None
        (output.logprobs.sum() + output.entropy.sum()).backward()
    return {name: p.grad.clone() for name, p in policy.named_parameters() if p.grad is not None}


def test_gradients_do_not_depend_on_the_cut_or_the_layout(policy: Policy, cache: PatchCache) -> None:
    whole = gradients(policy, cache, [ROWS], packed=False)
    assert len(whole) == len(list(policy.parameters()))
    for cuts, packed in (([ROWS], True), ([ROWS[:1], ROWS[1:]], False), ([[row] for row in ROWS], True)):
        other = gradients(policy, cache, cuts, packed)
        for name, gradient in whole.items():
            torch.testing.assert_close(other[name], gradient, rtol=2e-3, atol=2e-4, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("rows", [[], [ROWS[3]]])
def test_vision_tower_always_has_a_gradient(policy: Policy, cache: PatchCache, rows: list[Row]) -> None:
    policy.zero_grad()
    output = policy(batch_of(policy, rows, cache))
    assert output.logprobs.shape[0] == sum(int(row.tokens.loss_mask.sum()) for row in rows)
    output.logprobs.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, name
        if ".visual." in name:
            assert not parameter.grad.any(), name


def test_each_distinct_picture_goes_through_the_tower_once(policy: Policy, cache: PatchCache) -> None:
    batch = batch_of(policy, ROWS, cache)
    assert batch.grids.tolist() == [[1, 4, 4], [1, 2, 2], [1, 2, 2], [1, 4, 8]]  # sizes of pictures 0, 7, 8 and 4
    assert batch.picture_slots.shape == batch.picture_features.shape == (4 + 6 + 9,)


def test_chunked_scores_equal_whole_ones(policy: Policy, cache: PatchCache, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(policy, ROWS, cache)
    whole = policy(batch, temperature=0.7, entropy=Entropy.TRAINED)
    monkeypatch.setattr(model_module, "LOGIT_CHUNK_BYTES", 4 * 300 * 5)
    cut = policy(batch, temperature=0.7, entropy=Entropy.TRAINED)
    torch.testing.assert_close(cut.logprobs, whole.logprobs)
    torch.testing.assert_close(cut.entropy, whole.entropy)


def test_a_sampled_first_token_is_an_error(policy: Policy, cache: PatchCache) -> None:
    row = make_row(9)
    row.tokens.loss_mask[0] = True
    with pytest.raises(BatchError, match="first token"):
        batch_of(policy, [row], cache)
    with pytest.raises(BatchError, match="padding"):
        TokenIds(image_pad=3, padding=3)


def test_what_was_sampled_without_log_probs_is_no_lesson(policy: Policy, cache: PatchCache) -> None:
    row = make_row(9)
    row = replace(row, tokens=replace(row.tokens, logprobs=None))
    with pytest.raises(BatchError, match="without log-probs"):
        batch_of(policy, [row], cache)


def test_load_equals_what_was_saved(policy: Policy, cache: PatchCache, tmp_path) -> None:
    policy.hf.save_pretrained(tmp_path)
    again = load_policy(tmp_path)
    assert set(named_weights(again)) == set(named_weights(policy))
    assert "lm_head.weight" not in named_weights(again)  # tied
    batch = batch_of(policy, ROWS, cache)
    with torch.no_grad():
        torch.testing.assert_close(again(batch).logprobs, policy(batch).logprobs)


def test_other_architectures_are_refused(tmp_path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ModelError, match="gpt2"):
        load_policy(tmp_path)


def test_bfloat16_stays_close(cache: PatchCache) -> None:
    exact, rough = make_policy(), make_policy(dtype=torch.bfloat16)
    with torch.no_grad():
        a = exact(batch_of(exact, ROWS, cache)).logprobs
        b = rough(batch_of(rough, ROWS, cache)).logprobs
    assert b.dtype == torch.float32
    assert (a - b).abs().mean() < 0.05


def test_layers_left_out_of_checkpointing_change_no_gradient(cache: PatchCache) -> None:
    found = []
    for checkpointing, plain in ((False, 0), (True, 0), (True, 1), (True, 99)):
        torch.manual_seed(0)
        policy = wrap(type(make_policy().hf)(make_config()), gradient_checkpointing=checkpointing, plain_layers=plain)
        found.append(gradients(policy, cache, [ROWS], packed=True))
        checkpointed = [bool(layer.gradient_checkpointing) for layer in policy.hf.model.language_model.layers]
        assert checkpointed == [checkpointing and number < 2 - plain for number in range(2)]
    for other in found[1:]:
        for name, gradient in found[0].items():
            torch.testing.assert_close(other[name], gradient, msg=lambda m, n=name: f"{n}: {m}")
