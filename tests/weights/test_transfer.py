"""Names on both sides of an update. The update itself runs in tests/rollout/test_runner.py, on a real engine."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub import constants, snapshot_download
from huggingface_hub._tree_cache import TreeCacheEntry, write_tree_cache
from huggingface_hub.errors import IncompleteSnapshotError
from safetensors.torch import save_file

from mmsr_ray.weights.transfer import BACKEND, WeightMismatch, checkpoint_names, compare_names, register, tied_head
from tests.rollout.scripted import as_on_the_hub


def test_names_are_compared_both_ways() -> None:
    compare_names({"a", "b"}, {"b", "a"})
    with pytest.raises(WeightMismatch, match=r"1 not published \['b'\], 0 unknown"):
        compare_names({"a"}, {"a", "b"})
    with pytest.raises(WeightMismatch, match=r"0 not published \[\], 1 unknown \['c'\]"):
        compare_names({"a", "c"}, {"a"})


def test_names_of_a_checkpoint_in_one_file_or_many(tmp_path: Path, tiny_model: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no safetensors"):
        checkpoint_names(str(tmp_path), None)
    save_file({"a": torch.ones(1), "b": torch.ones(1)}, tmp_path / "model.safetensors")
    assert checkpoint_names(str(tmp_path), None) == {"a", "b"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "1", "y": "2"}}))
    assert checkpoint_names(str(tmp_path), None) == {"x", "y"}
    assert any("visual" in name for name in checkpoint_names(str(tiny_model), None))


def test_names_of_a_model_of_the_hub_of_which_vllm_fetched_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client remembers all of a repository's files, and refuses a snapshot without its README as incomplete."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    commit = "0" * 40
    repository = tmp_path / "models--org--model"
    snapshot = repository / "snapshots" / commit
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(commit)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, snapshot / "model.safetensors")
    listed = {name: TreeCacheEntry(size=2, blob_id="0" * 40) for name in ("config.json", "model.safetensors", "README.md")}
    write_tree_cache(str(repository), commit, listed)
    with pytest.raises(IncompleteSnapshotError):
        snapshot_download("org/model", local_files_only=True)
    assert checkpoint_names("org/model", None) == {"a"}
    with pytest.raises(FileNotFoundError):
        checkpoint_names("org/other", None)


def test_vllm_finds_the_plugin_and_registering_twice_is_harmless() -> None:
    from importlib.metadata import entry_points

    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    (found,) = [e for e in entry_points(group="vllm.general_plugins") if e.name == "mmsr_weights"]
    found.load()()
    register()
    assert WeightTransferEngineFactory._registry[BACKEND]().__name__ == "Transfer"


def test_the_learner_and_vllm_mean_the_same_weights(tiny_model: Path) -> None:
    """Names as the learner publishes them against the checkpoint's, both in vLLM's terms."""
    from vllm.model_executor.models.qwen2_5_vl import Qwen2_5_VLForConditionalGeneration

    from mmsr_ray.learner.model import load_policy, named_weights
    from mmsr_ray.weights.transfer import _in_model_terms

    published = _in_model_terms(Qwen2_5_VLForConditionalGeneration, named_weights(load_policy(tiny_model)), tied=True)
    expected = _in_model_terms(Qwen2_5_VLForConditionalGeneration, checkpoint_names(str(tiny_model), None), tied=True)
    compare_names(published, expected)
    assert any(name.startswith("visual.") for name in published)
    assert any(name.startswith("language_model.model.layers.0.") for name in published)


def test_the_model_says_whether_its_head_is_tied(tiny_model: Path, tmp_path: Path) -> None:
    """The hub's configs do not, where vLLM's text config is made of them: what the runner's tests load is in that form."""
    from transformers import AutoConfig

    ours, hubs = (AutoConfig.from_pretrained(path) for path in (tiny_model, as_on_the_hub(tiny_model, tmp_path)))
    own, flat = ours.get_text_config().to_dict(), hubs.get_text_config().to_dict()
    assert own.pop("tie_word_embeddings") is True
    assert flat == own and hubs.tie_word_embeddings and not hasattr(hubs.get_text_config(), "tie_word_embeddings")

    embedding, other = torch.nn.Embedding(4, 2), torch.nn.Embedding(4, 2)
    for head, tied in (embedding, True), (other, False):
        language = SimpleNamespace(lm_head=SimpleNamespace(weight=head.weight), model=SimpleNamespace(embed_tokens=embedding))
        assert tied_head(SimpleNamespace(get_language_model=lambda language=language: language)) is tied
