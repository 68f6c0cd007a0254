"""A published set fetched from a hub: the real client against a small hub that speaks its HTTP on this machine."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.evaluation.benchmarks import sets

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OPEN = """
import logging, sys
from mmsr_ray.config import DataConfig
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.benchmarks import open_benchmark
logging.basicConfig(level=logging.INFO, format="%(message)s")
try:
    for name in sys.argv[1:]:
        benchmark = open_benchmark(name, DataConfig(train="", test="", benchmark_sizes="warn"))
        sys.stdout.write(f"{name} {len(list(benchmark.samples()))}\\n")
except DataError as error:
    sys.exit(str(error))
"""


class Hub(BaseHTTPRequestHandler):
    """Repositories are folders under `root`; `asked` holds the paths of all requests."""

    root: Path
    asked: list[str]

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(self.path)
        parts = self.path.partition("?")[0].strip("/").split("/")
        if parts[:2] == ["api", "datasets"]:
            self._list("/".join(parts[2:4]), tree=parts[4:5] == ["tree"])
        else:
            commit = parts[4] if len(parts[4]) == len(COMMIT) else COMMIT
            self._file(self.root / "/".join(parts[1:3]) / "/".join(parts[5:]), commit)  # datasets/owner/name/resolve/revision/file

    def _list(self, repository: str, tree: bool) -> None:
        folder = self.root / repository
        if not folder.is_dir():
            return self._answer(404, b'{"error": "Repository not found"}', {"X-Error-Code": "RepoNotFound"})
        files = [file for file in sorted(folder.rglob("*")) if file.is_file()]
        listed = [{"type": "file", "path": str(file.relative_to(folder)), "size": file.stat().st_size, "oid": _tag(file)} for file in files]
        siblings = [{"rfilename": entry["path"]} for entry in listed]
        about = {"id": repository, "sha": COMMIT, "private": False, "siblings": siblings, "tags": [], "downloads": 0, "likes": 0}
        return self._answer(200, json.dumps(listed if tree else about).encode())

    def _file(self, file: Path, commit: str) -> None:
        if not file.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound"})
        return self._answer(200, file.read_bytes(), {"ETag": f'"{_tag(file)}"', "X-Repo-Commit": commit})

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def _tag(file: Path) -> str:
    return hashlib.sha1(file.read_bytes()).hexdigest()


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """(folder of its repositories, address)."""
    Hub.root, Hub.asked = tmp_path / "hub", []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield Hub.root, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join(timeout=10.0)
    server.server_close()


def opened(address: str, home: Path, *names: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    environment = kept | {"HF_ENDPOINT": address, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
    return subprocess.run([sys.executable, "-c", OPEN, *names], env=environment, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.heavy
def test_sets_come_from_the_hub_and_only_what_is_needed(hub: tuple[Path, str], tmp_path: Path) -> None:
    root, address = hub
    sets.fvqa(root / "lmms-lab" / "FVQA" / "fvqa_test.parquet", 3)
    sets.mmsearch(root / "CaraJ" / "MMSearch" / "end2end.parquet", 2, 1)
    (root / "CaraJ" / "MMSearch" / "rerank.parquet").write_bytes(b"a gigabyte of something else")
    sets.simplevqa(root / "m-a-p" / "SimpleVQA" / "test.parquet", 2, 1)
    sets.livevqa(root / "ONE-Lab" / "LiveVQA-Research-Preview", 2)
    ended = opened(address, tmp_path / "home", "fvqa_test", "mmsearch", "simplevqa", "livevqa")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.splitlines() == ["fvqa_test 3", "mmsearch 2", "simplevqa 2", "livevqa 2"]
    assert "fvqa_test has 3 usable questions where 1800 are published" in ended.stderr
    assert any("fvqa_test.parquet" in path for path in Hub.asked)
    assert not any("rerank.parquet" in path for path in Hub.asked)


@pytest.mark.heavy
def test_a_set_that_the_hub_does_not_have_or_a_hub_that_is_down(hub: tuple[Path, str], tmp_path: Path) -> None:
    root, address = hub
    (root / "m-a-p" / "SimpleVQA").mkdir(parents=True)
    (root / "m-a-p" / "SimpleVQA" / "README.md").write_text("moved")
    gone = opened(address, tmp_path / "home", "livevqa")
    assert gone.returncode == 1
    assert "the hub does not give ONE-Lab/LiveVQA-Research-Preview" in gone.stderr
    assert "or name them: livevqa=PATH" in gone.stderr
    moved = opened(address, tmp_path / "home", "simplevqa")
    assert "m-a-p/SimpleVQA has no test.parquet on the hub any more" in moved.stderr
    down = opened("http://127.0.0.1:9", tmp_path / "home", "mmsearch")
    assert down.returncode == 1
    assert "the hub does not give CaraJ/MMSearch" in down.stderr
