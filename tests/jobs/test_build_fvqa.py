"""The whole job on a few dozen concepts of Atlas: killed, submitted again, and what was asked of the services counted by them."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import yaml

from jobs import build_fvqa
from jobs.build_fvqa import _check
from mmsr_ray.atlas.prepare import WebProcess, start_web, world_of
from mmsr_ray.config import AtlasConfig, ConfigError, load
from mmsr_ray.data.construction.candidate import read
from mmsr_ray.data.schema import write_fvqa

ATLAS = AtlasConfig(known=8, unknown_demonstrated=20, unknown_train=40, unknown_test=4, latency_seconds=0.1)
NOBODY = ["Nobody Whatever", "Nothing Atall"]
TEXTUAL = 8  # questions of another set
IN_FLIGHT = 4  # requests of one service


@pytest.fixture
def web() -> Iterator[WebProcess]:
    started = start_web(ATLAS)
    yield started
    started.stop()


def config_file(folder: Path, base: str) -> Path:
    def service(kind: str, path: str, **more: object) -> dict[str, object]:
        return {"kind": kind, "url": f"{base}{path}", "key_env": "", "rate_per_second": 0, "concurrency": IN_FLIGHT, **more}

    concepts = [*(entity.name for entity in world_of(ATLAS).entities[:40]), *NOBODY]
    (folder / "concepts.txt").write_text("\n".join(concepts))
    others = world_of(ATLAS).collected_samples("test", TEXTUAL + 1)
    write_fvqa(folder / "infoseek.parquet", others[:TEXTUAL])
    last = others[TEXTUAL]
    (folder / "one.png").write_bytes(last.image)
    rows = ["image,question,answer,category", f"one.png,{last.question},{last.answers[0]},Science: concepts", "none.png,What is this?,tin,"]
    (folder / "manual.csv").write_text("\n".join(rows))
    content = {
        "run": {"name": "built", "dir": str(folder)},
        "model": {"path": "nobody"},
        "data": {"train": "", "test": ""},
        "tools": {
            "picture_finder": service("serpapi_images", "/search.json", price={"per_call": 0.01}),
            "reader": service("jina", "/reader/"),
            "model": service("chat", "/v1", model="atlas"),
            "image_search": service("serpapi_lens", "/search.json"),
            "text_search": service("serpapi", "/search.json"),
            "private_hosts": ["127.0.0.1"],
            "actors": 1,
        },
        "construction": {
            "concepts": str(folder / "concepts.txt"),
            "textual": str(folder / "infoseek.parquet"),
            "manual": str(folder / "manual.csv"),
            "textual_questions": TEXTUAL - 2,
            "head": 0,
            "tail": 0,
            "questions_per_picture": 2,
            "until": "sampled",
        },
    }
    (folder / "build.yaml").write_text(yaml.safe_dump(content))
    return folder / "build.yaml"


def arguments(config: Path) -> list[str]:
    return ["jobs/build_fvqa.py", "--config", str(config)]


def submit(config: Path) -> subprocess.Popen[str]:
    command = [sys.executable, *arguments(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def asked(web: WebProcess) -> dict[str, int]:
    with urlopen(f"{web.base}/stats", timeout=10) as response:
        return json.load(response)


@pytest.mark.heavy
def test_a_run_killed_while_questions_are_written_pays_for_nothing_twice(
    tmp_path: Path,
    web: WebProcess,
    run_here: Callable[..., int],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    config = config_file(tmp_path, web.base)
    first = submit(config)
    deadline = time.monotonic() + 240
    while asked(web).get("v1", 0) < 12:
        assert first.poll() is None and time.monotonic() < deadline, first.communicate()[0] if first.poll() is not None else "too slow"
        time.sleep(0.05)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    assert sorted(file.name for file in (tmp_path / "built").glob("*.parquet")) == ["01_concepts.parquet", "02_pictures.parquet"]

    with caplog.at_level(logging.INFO):
        assert run_here(build_fvqa.main, arguments(config)) == 0
    assert "02_pictures.parquet: 42 in, 42 out, 40 kept (2 no picture), made before" in caplog.text + capsys.readouterr().out
    requests = asked(web)
    assert requests["google_images"] == 42 and requests["reader"] == 40
    assert requests.get("v1 again", 0) <= IN_FLIGHT  # those that were under way when the kill came
    content = json.loads((tmp_path / "built" / "construction.json").read_text())
    stages = {stage["name"]: stage for stage in content["stages"]}
    assert list(stages) == ["concepts", "pictures", "questions", "joined", "distinct", "classified", "sampled"]
    assert all(stage["kept"] + sum(stage["dropped"].values()) == stage["made"] for stage in content["stages"])
    assert stages["questions"]["taken"] == 40 and stages["questions"]["made"] == 80
    joined = stages["joined"]
    assert (joined["taken"], joined["made"], joined["dropped"]) == (80, 80 + TEXTUAL + 2, {"manual: no image file": 1})
    assert content["cost_usd"] == pytest.approx(0.42) and content["questions"] > 40
    kept = list(read(tmp_path / "built" / "07_sampled.parquet", kept=True))
    before = Counter(c.origin for c in read(tmp_path / "built" / "06_classified.parquet", kept=True))
    origins = Counter(c.origin for c in kept)
    assert 0 < origins["textual"] == min(TEXTUAL - 2, before["textual"])
    assert origins["manual"] == 1 and origins["visual"] > 40
    assert len(kept) == content["questions"] and all(c.category and c.question and c.answer and c.image for c in kept)


def test_what_would_fail_late_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "concepts.txt").write_text("Nimbus")
    atlas = "jobs/configs/build_atlas.yaml"
    named = f"construction.concepts={tmp_path}/concepts.txt"
    with pytest.raises(ConfigError, match="nothing to build from"):
        _check(load(atlas, ["construction.concepts="]))
    with pytest.raises(ConfigError, match=r"tools\.model\.kind is none"):
        _check(load(atlas, [named, "tools.model.kind=none"]))
    with pytest.raises(ConfigError, match="make train"):
        _check(load(atlas, [named, f"run.dir={tmp_path}"]))
    _check(load(atlas, [named, f"run.dir={tmp_path}", "construction.until=sampled"]))
