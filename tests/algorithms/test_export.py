"""A run folder becomes a folder for a hub: a model that loads, a card that says what is known, an upload."""

from __future__ import annotations

import base64
import json
import logging
import re
import shutil
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import HfApi, ModelCard
from transformers import AutoProcessor, Qwen2_5_VLForConditionalGeneration

from mmsr_ray.algorithms.export import ExportError, Source, card_of, export, main, push
from mmsr_ray.algorithms.model_card import hub_dataset, hub_id
from mmsr_ray.config import load, to_yaml
from mmsr_ray.evaluation.summary import config_hash, write_summary

ROW = {
    "name": "after RL, on demand",
    "questions": 240,
    "accuracy": 0.971,
    "accuracy_low": 0.94,
    "accuracy_high": 0.986,
    "search_ratio_calls": 0.429,
    "search_precision": 0.99,
    "search_recall": None,
}


@pytest.fixture
def run(tmp_path: Path, tiny_model: Path) -> Path:
    """A finished run: config, summary, its final model, and a best one of step 20."""
    folder = tmp_path / "runs" / "mine"
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_model, folder / "best")
    (folder / "best" / "best.json").write_text(json.dumps({"step": 20, "accuracy": 0.9}))
    config = load(None, ["model.path=Qwen/Qwen2.5-VL-7B-Instruct", "data.train=hf://datasets/me/fvqa/train.parquet", "data.test=b"])
    (folder / "config.yaml").write_text(to_yaml(config))
    write_summary(folder, config=config, seconds={}, rows=[ROW])
    return folder


def test_the_folder_loads_and_its_card_says_what_is_known(run: Path, tmp_path: Path) -> None:
    assert main([str(run), "--out", str(tmp_path / "out")]) == 0
    Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out")
    AutoProcessor.from_pretrained(tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["base_model"] == "Qwen/Qwen2.5-VL-7B-Instruct"
    assert front["datasets"] == ["me/fvqa"]
    assert {"mmsr-ray", "grpo"} <= set(front["tags"])
    assert "license" not in front
    assert "Not chosen yet" in text
    assert "| after RL, on demand | 240 | 97.1 % (94.0–98.6) | 42.9 % | 99.0 % | – |" in text
    assert f"`{config_hash(load(run / 'config.yaml'))}`" in text
    assert "512 prompts x 8 rollouts, 4 optimiser steps" in text
    assert str(tmp_path) not in text
    assert not (tmp_path / "out.partial").exists()
    ModelCard(text)  # the hub's own parser


def test_the_best_model_tells_its_step_and_choices_of_the_user_are_taken(run: Path, tmp_path: Path) -> None:
    arguments = ["--license", "apache-2.0", "--base-model", "a/b", "--dataset", "c/d", "--dataset", "e/f"]
    assert main([str(run / "best"), "--out", str(tmp_path / "out"), *arguments]) == 0
    text = (tmp_path / "out" / "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert (front["license"], front["base_model"], front["datasets"]) == ("apache-2.0", "a/b", ["c/d", "e/f"])
    assert "50; these weights are of step 20" in text
    assert "## License" not in text


def test_nothing_is_overwritten_and_what_is_no_run_is_told(run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "out").mkdir()
    with caplog.at_level(logging.ERROR):
        assert main([str(run), "--out", str(tmp_path / "out")]) == 2
        assert main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "new")]) == 2
    assert "out exists: choose another folder" in caplog.text
    assert "holds no model, best or whole checkpoint" in caplog.text
    (run / "checkpoints" / "step_00000010").mkdir(parents=True)
    with pytest.raises(ExportError, match=r"no manifest\.json"):
        Source.find(run / "checkpoints" / "step_00000010")
    shutil.rmtree(run / "model")
    assert Source.find(run).path == run / "best"
    (run / "config.yaml").unlink()
    with pytest.raises(ExportError, match="settings of the run"):
        card_of(Source.find(run), "x")


def test_only_ids_of_a_hub_are_named() -> None:
    assert hub_id("Qwen/Qwen2.5-VL-3B-Instruct") == "Qwen/Qwen2.5-VL-3B-Instruct"
    assert [hub_id(p) for p in ("/data/models/mine", "mine", "./a/b/c")] == ["", "", ""]
    assert hub_dataset("hf://datasets/lmms-lab/FVQA/train.parquet") == "lmms-lab/FVQA"
    assert hub_dataset("/data/train.parquet") == ""


class Hub(BaseHTTPRequestHandler):
    """The few routes of the hub that an upload of small files asks for; everything is a regular file."""

    requests: list[tuple[str, str | None]]
    files: dict[str, bytes]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.requests.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer({"error": "who are you?"}, 401)
        if self.path == "/api/repos/create":
            assert json.loads(body) == {"name": "model", "organization": "me", "visibility": "private"}
            return self._answer({"url": f"http://{self.headers['Host']}/me/model", "name": "me/model"})
        if "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            return self._answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
        if "/commit/" in self.path:
            for line in body.splitlines():
                item = json.loads(line)
                if item["key"] == "file":
                    self.files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            url = f"http://{self.headers['Host']}/me/model/commit/1"
            return self._answer({"success": True, "commitOid": "1" * 40, "commitUrl": url, "hookOutput": ""})
        return self._answer({})

    def do_GET(self) -> None:
        self.requests.append((self.path, self.headers.get("Authorization")))
        if self.headers.get("Authorization") != "Bearer secret":
            return self._answer({"error": "who are you?"}, 401)
        return self._answer({"sha": "1" * 40, "id": "me/model", "siblings": []} if re.search("/api/models/", self.path) else {})

    def _answer(self, content: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[tuple[str, type[Hub]]]:
    """Address of a hub, and what it was asked for and given."""

    class Fresh(Hub):
        requests, files = [], {}

    server = ThreadingHTTPServer(("127.0.0.1", 0), Fresh)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", Fresh
    server.shutdown()


def test_a_push_makes_the_repository_and_uploads_every_file(run: Path, tmp_path: Path, hub: tuple[str, type[Hub]]) -> None:
    source = Source.find(run)
    out = export(source, tmp_path / "out", card_of(source, "me/model"))
    push(out, "me/model", HfApi(endpoint=hub[0], token="secret"), private=True)
    assert hub[1].files == {path.name: path.read_bytes() for path in out.iterdir()}
    assert all(token == "Bearer secret" for _, token in hub[1].requests)


def test_a_push_without_the_right_token_is_one_sentence(run: Path, hub: tuple[str, type[Hub]]) -> None:
    with pytest.raises(ExportError, match=r"was not pushed to me/model: .*401") as error:
        push(run / "model", "me/model", HfApi(endpoint=hub[0], token="wrong"), private=True)
    assert len(str(error.value).splitlines()) == 1
