"""The tiny policy is a Qwen2.5-VL to everybody, and one word of the world is one token."""

from __future__ import annotations

from pathlib import Path

from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from mmsr_ray.atlas import words


def test_words_and_tags_are_one_token_each(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    values = [value for fact in words.FACTS.values() for value in fact]
    for word in (*words.FIRST_NAMES, *words.LAST_NAMES, *words.CATEGORIES, *words.FACTS, *values):
        assert len(tokenizer.encode(f" {word}")) == 1, word
    for tag in ("<reason>", "</reason>", "<text_search>", "</text_search>", "<answer>", "</answer>", "<search>", "<img>", "</search>"):
        assert len(tokenizer.encode(tag)) == 1, tag


def test_any_text_survives_the_tokenizer(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    for text in ("Ünïcode, 漢字 and 🙂", "a\tb\n\n c", "<answer> x </answer>", "1,000.50 % (c)"):
        assert tokenizer.decode(tokenizer.encode(text), clean_up_tokenization_spaces=False) == text


def test_it_is_a_qwen_with_a_tied_head(tiny_model: Path) -> None:
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tiny_model)
    assert model.config.model_type == "qwen2_5_vl"
    assert 300_000 < sum(p.numel() for p in model.parameters()) < 2_000_000
    assert model.lm_head.weight.data_ptr() == model.model.language_model.embed_tokens.weight.data_ptr()
