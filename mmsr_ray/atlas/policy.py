"""The tiny policy: a real Qwen2.5-VL of about a million parameters, in a folder as a hub would hold it.

Promise: transformers and vLLM load the folder as they load any Qwen2.5-VL. Its tokenizer is a byte-level BPE trained
on the world's own words, so that each word and each tag is one token; special tokens carry Qwen2.5's names.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from mmsr_ray.agent.prompts import PromptSet
from mmsr_ray.atlas import words

SPECIAL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_SPLIT = r"</?[a-z_]+>|(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _corpus() -> list[str]:
    """Everything the policy ever reads or writes, once with and once without a leading space."""
    text: list[str] = []
    for fact, values in words.FACTS.items():
        for value in values:
            for shape in (words.INFOBOX, *words.PROSE):
                text.append(shape.format(name="Aldo Adrel", fact=fact, value=value))
    for category in words.CATEGORIES:
        text += [q.format(category=category, fact=fact) for q in (*words.NAME_QUESTIONS, *words.FACT_QUESTIONS) for fact in words.FACTS]
        text += [t.format(name="Aldo Adrel", category=category) for t in (words.INTRO, words.JOURNAL_INTRO)]
    text += [f" {a} {b} {a}-{b}".lower() + f" {a} {b}" for a, b in zip(words.FIRST_NAMES, words.LAST_NAMES, strict=True)]
    text += [" ".join(values) for values in words.FACTS.values()]
    text += list(PromptSet.load("brief").texts())
    tags = "<reason></reason><search><img></search><text_search></text_search><answer></answer><information></information>"
    text += [tags, "system user assistant", *words.TEACHER_PHRASES]
    return text


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over the world's words, split as Qwen2.5 splits except that a tag stays whole."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(  # type: ignore[assignment]
        [
            pre_tokenizers.Split(Regex(_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    trainer = trainers.BpeTrainer(
        vocab_size=4096,  # an upper bound: merges run out when every word is one token
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=1,
    )
    lines = _corpus()
    spaced = [" " + word for line in lines for word in line.split()]
    core.train_from_iterator(itertools.chain(lines, spaced), trainer)
    core.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=32768)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def policy_config(tokenizer: PreTrainedTokenizerFast, *, hidden: int = 128, layers: int = 2, dtype: str = "float32") -> Qwen2_5_VLConfig:
    """Qwen2.5-VL's own config with small numbers; sizes are rounded so that two ranks can split them."""
    token = tokenizer.get_vocab().__getitem__
    heads = hidden // 32
    vocab = (len(tokenizer) + 63) // 64 * 64
    return Qwen2_5_VLConfig(
        text_config={
            "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": hidden * 3, "num_hidden_layers": layers,
            "num_attention_heads": heads, "num_key_value_heads": heads, "max_position_embeddings": 4096, "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": token("<|endoftext|>"), "eos_token_id": token("<|im_end|>"), "pad_token_id": token("<|endoftext|>"),
            "initializer_range": 0.04, "use_sliding_window": False, "dtype": dtype,
        },
        vision_config={
            "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 2, "out_hidden_size": hidden, "in_channels": 3,
            "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2, "window_size": 112, "fullatt_block_indexes": [0, 1],
            "initializer_range": 0.04,
        },
        image_token_id=token("<|image_pad|>"), video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"), vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True, dtype=dtype,
    )  # fmt: skip


def _processor_files() -> dict[str, dict[str, object]]:
    picture = {
        "image_processor_type": "Qwen2VLImageProcessor", "patch_size": 14, "temporal_patch_size": 2, "merge_size": 2,
        "min_pixels": 784, "max_pixels": 12_845_056, "size": {"shortest_edge": 784, "longest_edge": 12_845_056},
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "Qwen2_5_VLProcessor",
    }  # fmt: skip
    return {"preprocessor_config.json": picture, "processor_config.json": {"processor_class": "Qwen2_5_VLProcessor"}}


def build_policy(folder: Path | str, seed: int = 0) -> Path:
    """Write a random tiny Qwen2.5-VL with tokenizer, processor and chat template. Returns the folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    torch.manual_seed(seed)
    model = Qwen2_5_VLForConditionalGeneration(policy_config(tokenizer))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    model.generation_config.eos_token_id = end  # type: ignore[union-attr]
    model.generation_config.pad_token_id = tokenizer.pad_token_id  # type: ignore[union-attr]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    for name, content in _processor_files().items():
        (folder / name).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    return folder
