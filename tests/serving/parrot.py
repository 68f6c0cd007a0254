"""A model folder whose greedy turn is a given text: the tiny policy, one MLP made into a table of next tokens."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerFast


def write_parrot(model: Path, folder: Path, text: str, *, endless: bool = False, after: str = "") -> Path:
    """Every turn is `text`; `endless`: its last token without end. Its tokens must differ from each other.

    A turn that another parrot, which says `after`, has begun is ended as that one would: weights may change at any token.
    """
    shutil.copytree(model, folder)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
    start = tokenizer.encode("<|im_start|>assistant\n")[-1]
    end: int = tokenizer.convert_tokens_to_ids("<|im_end|>")
    chain = [start, *tokenizer.encode(text)]
    chain.append(chain[-1] if endless else end)
    assert len(set(chain[:-1])) == len(chain) - 1, "a token comes twice: the table has one next token for each"
    begun = [start, *tokenizer.encode(after), end] if after else []
    following_of = dict(itertools.pairwise(begun)) | dict(itertools.pairwise(chain))
    weights = load_file(folder / "model.safetensors")
    (table,) = (weights[name] for name in weights if name.endswith("embed_tokens.weight"))
    unit = torch.nn.functional.normalize(table, dim=1)
    for name, tensor in weights.items():
        if name.endswith(("self_attn.o_proj.weight", "mlp.down_proj.weight")) and "visual" not in name:
            tensor.zero_()
    prefix = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight") and "visual" not in name).removesuffix(
        "down_proj.weight"
    )
    for unit_index, (token, following) in enumerate(following_of.items()):
        for part in ("gate_proj.weight", "up_proj.weight"):
            weights[prefix + part][unit_index] = 3 * unit[token]
        weights[prefix + "down_proj.weight"][:, unit_index] = 0.01 * unit[following]
    for part in ("gate_proj.weight", "up_proj.weight"):
        weights[prefix + part][len(following_of) :] = 0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder
