"""The policy as the learner sees it: a micro-batch in, log-probs of its sampled tokens out.

Promise: logits exist for sampled tokens only, a chunk at a time, and the vision tower runs once per distinct picture
in every call, even where no token refers to a picture.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from types import MethodType
from typing import Any, NamedTuple, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig

from mmsr_ray.learner import attention
from mmsr_ray.learner.batch import MicroBatch, TokenIds
from mmsr_ray.learner.fused import fuse

LOGIT_CHUNK_BYTES = 512 << 20  # of float32 logits alive at once
BAN = -100.0  # added to the logits of vision tokens, as the engine does when it samples


class ModelError(ValueError):
    """A folder is not a model this learner can train."""


class Entropy(StrEnum):
    """What to do about the entropy of the next-token distribution."""

    NONE = "none"
    MEASURED = "measured"  # a number without gradient
    TRAINED = "trained"


class PolicyOutput(NamedTuple):
    """float32 [S] each, in the order of the batch's sampled tokens; entropy is None unless asked for.

    A tuple, because DeepSpeed looks for the tensors to hook its backward pass to in tuples, lists and dicts only.
    """

    logprobs: torch.Tensor
    entropy: torch.Tensor | None


class Policy(nn.Module):
    """Qwen2.5-VL with a head that scores given tokens instead of returning logits."""

    def __init__(self, hf: Qwen2_5_VLForConditionalGeneration) -> None:
        super().__init__()
        self.hf = hf
        attention.use(hf)
        projection = hf.model.visual.patch_embed.proj
        projection.forward = MethodType(_project_patches, projection)

    @property
    def _text_config(self) -> Qwen2_5_VLTextConfig:
        return cast(Qwen2_5_VLTextConfig, self.hf.config.text_config)

    @property
    def token_ids(self) -> TokenIds:
        padding = self._text_config.pad_token_id
        return TokenIds(image_pad=self.hf.config.image_token_id, padding=0 if padding is None else padding)

    @property
    def banned_ids(self) -> list[int]:
        """Tokens that no rollout can sample: those that stand for pictures and videos."""
        config = self.hf.config
        ids = {config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id}
        return sorted(i for i in ids if i is not None)

    def forward(self, batch: MicroBatch, temperature: float = 1.0, entropy: Entropy = Entropy.NONE) -> PolicyOutput:
        """Log-probs (natural, under `temperature`) of the batch's sampled tokens, and their entropy if asked for."""
        core = self.hf.model
        embedded = core.language_model.embed_tokens(batch.ids)
        features = self._picture_features(batch).to(embedded.dtype)
        flat = embedded.flatten(0, 1)
        if batch.picture_slots.numel():
            flat = flat.index_put((batch.picture_slots,), features[batch.picture_features])
        else:
            flat = flat + 0.0 * features.sum()  # keeps the tower in the graph: its gradient is zero, but it exists
        packing: dict[str, Any] = {}
        if batch.starts is not None:
            packing = {
                "cu_seq_lens_q": batch.starts,
                "cu_seq_lens_k": batch.starts,
                "max_length_q": batch.longest,
                "max_length_k": batch.longest,
            }
        hidden = core.language_model(
            inputs_embeds=flat.view_as(embedded), position_ids=batch.positions, attention_mask=None, use_cache=False, **packing
        )
        chosen = hidden.last_hidden_state.flatten(0, 1)[batch.predict_from]
        return self._score(chosen, batch.targets, temperature, entropy)

    def _picture_features(self, batch: MicroBatch) -> torch.Tensor:
        visual = self.hf.model.visual
        features = visual(batch.patches.to(visual.dtype), grid_thw=batch.grids)
        # transformers 5 returns a structure whose pooler_output holds the merged features
        return features if isinstance(features, torch.Tensor) else features.pooler_output

    def _score(self, hidden: torch.Tensor, targets: torch.Tensor, temperature: float, entropy: Entropy) -> PolicyOutput:
        vocabulary, banned = self._text_config.vocab_size, torch.tensor(self.banned_ids, device=hidden.device)
        size = max(1, LOGIT_CHUNK_BYTES // (4 * vocabulary))
        if hidden.shape[0] <= size:
            return PolicyOutput(*_score_chunk(self.hf.lm_head, hidden, targets, banned, temperature, entropy))
        # recomputed in the backward pass: logits of a long batch would be the largest tensor of the step
        parts = [
            checkpoint(_score_chunk, self.hf.lm_head, h, t, banned, temperature, entropy, use_reentrant=False)
            for h, t in zip(hidden.split(size), targets.split(size), strict=True)
        ]
        return PolicyOutput(torch.cat([p[0] for p in parts]), torch.cat([p[1] for p in parts]) if entropy is not Entropy.NONE else None)


def _score_chunk(
    head: nn.Module, hidden: torch.Tensor, targets: torch.Tensor, banned: torch.Tensor, temperature: float, entropy: Entropy
) -> tuple[torch.Tensor, torch.Tensor | None]:
    logits = head(hidden).float()
    logits[:, banned] += BAN  # before the temperature, as in the engine
    if temperature != 1.0:
        logits = logits / temperature
    everything = torch.log_softmax(logits, dim=-1)
    logprobs = everything.gather(-1, targets[:, None]).squeeze(-1)
    if entropy is Entropy.NONE:
        return logprobs, None
    if entropy is Entropy.MEASURED:  # no graph: it would keep two more tensors of the logits' size alive
        everything = everything.detach()
    return logprobs, -(everything.exp() * everything).sum(-1)


def _project_patches(self: nn.Conv3d, patches: torch.Tensor) -> torch.Tensor:
    """The patch embedding as a matrix product: kernel and stride are the whole patch, and the general convolution is slow."""
    out = patches.flatten(1) @ self.weight.flatten(1).t()
    return out[:, :, None, None, None]


def load_policy(
    path: str | Path,
    *,
    dtype: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    plain_layers: int = 0,
    fused: bool = False,
) -> Policy:
    """Policy from a folder or hub id of a Qwen2.5-VL model, on the CPU, all parameters trainable, no dropout.

    Raises:
        ModelError: the config names another architecture.
    """
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "qwen2_5_vl":
        raise ModelError(f"{path} holds a {config.model_type} model: the learner trains qwen2_5_vl")
    hf = Qwen2_5_VLForConditionalGeneration.from_pretrained(path, dtype=dtype, attn_implementation="sdpa")
    return wrap(hf, gradient_checkpointing=gradient_checkpointing, plain_layers=plain_layers, fused=fused)


def wrap(
    hf: Qwen2_5_VLForConditionalGeneration, *, gradient_checkpointing: bool = False, plain_layers: int = 0, fused: bool = False
) -> Policy:
    """Policy around a model that is already in memory. `plain_layers` of the language model are not checkpointed. `fused`: see there.

    They are the last ones: their activations are the first that the backward pass frees, before earlier layers are computed again.
    """
    if fused:
        fuse(hf)
    if gradient_checkpointing:
        hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        layers: list[Any] = list(hf.model.language_model.layers)
        for layer in layers[max(0, len(layers) - plain_layers) :]:
            layer.gradient_checkpointing = False
    hf.config.use_cache = False
    policy = Policy(hf)
    policy.train()
    return policy


def named_weights(policy: Policy) -> dict[str, nn.Parameter]:
    """Parameters by the names of the model's checkpoint, as vLLM's loader takes them; a tied head appears once."""
    return {name.removeprefix("hf."): parameter for name, parameter in policy.named_parameters()}
