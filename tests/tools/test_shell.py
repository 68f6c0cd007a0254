"""The command line against a real web on this machine: what it shows, and one sentence with status 1 for what is wrong."""

from __future__ import annotations

import asyncio
import hashlib
import json
import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from aiohttp import web as http
from PIL import Image
from transformers import ViTConfig, ViTImageProcessor, ViTModel

from mmsr_ray.atlas.world import World
from mmsr_ray.data.schema import write_fvqa
from mmsr_ray.tools.__main__ import main
from mmsr_ray.tools.providers import fvqa_cache
from tests.tools.web import KEY, Web, png

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning")


@pytest.fixture
def served() -> Iterator[Web]:
    """A web in a thread of its own: the command line runs its own event loop."""
    server, loop = Web(), asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    asyncio.run_coroutine_threadsafe(server.start(), loop).result(10)
    yield server
    asyncio.run_coroutine_threadsafe(server.stop(), loop).result(10)
    loop.call_soon_threadsafe(loop.stop)
    thread.join(10)
    loop.close()


def settings(web: Web) -> list[str]:
    urls = {
        "image_search": "/search.json",
        "image_host": "/upload",
        "text_search": "/search.json",
        "reader": "/reader/",
        "summariser": "/v1",
    }
    kinds = ["tools.image_host.kind=upload", "tools.summariser.kind=chat", "tools.attempts=2", "tools.private_hosts=[127.0.0.1]"]
    return [*kinds, *(f"tools.{name}.url={web.root}{path}" for name, path in urls.items())]


def test_text_shows_titles_links_summaries_and_facts(served: Web, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["text", "the tower", "--question", "How high?", *settings(served), "tools.text_search.price.per_call=0.01"]) == 0
    out = capsys.readouterr().out
    assert f"1. Result 0\n   {served.root}/wiki/0\n   Summary" in out
    assert out.count("Summary") == 5
    assert "5 hits" in out and "1 attempt" in out and "$0.0100" in out
    assert all("How high?" in prompt for prompt in served.prompts)


def test_kinds_are_chosen_by_name_and_lose_the_address_of_another(
    served: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MY_SERPER", KEY)
    run = tmp_path / "run.yaml"
    run.write_text(
        f"model: {{path: m}}\ndata: {{train: t, test: t}}\ntools:\n  private_hosts: [127.0.0.1]\n"
        f"  text_search: {{kind: serpapi, url: '{served.root}/search.json'}}\n  summariser: {{kind: chat, url: '{served.root}/v1'}}\n"
    )
    chosen = ["--provider", "serper", "--reader", "trafilatura", "--summariser", "extractive", "--config", str(run), "--json"]
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    assert main(["text", "q", *chosen]) == 1
    assert "needs a key: set the environment variable SERPER_API_KEY" in capsys.readouterr().err
    own = [f"tools.text_search.url={served.root}/serper", "tools.text_search.key_env=MY_SERPER"]
    assert main(["text", "harbour company", *chosen, *own]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["hits"][0]["title"] == "S" and "harbour" in shown["hits"][0]["summary"]
    assert shown["failure"] is None and shown["cached"] is False and shown["attempts"] == 1
    assert served.queries == [{"key": KEY, "q": "harbour company", "num": 10}] and served.counts["v1"] == 0


def test_image_saves_its_thumbnails(served: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png())
    assert main(["image", str(photo), "--save", str(tmp_path / "found"), *settings(served)]) == 0
    assert "1. Match 0" in (out := capsys.readouterr().out) and "found/1." in out
    files = sorted((tmp_path / "found").iterdir())
    assert [file.stem for file in files] == ["1", "2", "3", "4", "5"]
    for file in files:
        with Image.open(file) as picture:
            assert (picture.format or "").lower() == file.suffix[1:]
            picture.load()


def test_a_picture_on_the_web_is_passed_by_its_address(served: Web, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("a", "b"):
        assert main(["image", f"https://example.org/{name}.png", *settings(served), "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)["hits"]) == 5
    assert [query["url"] for query in served.queries] == ["https://example.org/a.png", "https://example.org/b.png"]
    assert served.counts["upload"] == 0


def test_two_pictures_that_are_only_addresses_are_not_one_in_the_cache(
    served: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, cached in (("a", False), ("b", False), ("a", True)):
        assert main(["image", f"https://example.org/{name}.png", f"tools.cache.dir={tmp_path}", *settings(served), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["cached"] is cached


def test_check_gives_each_service_a_line(served: Web, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *settings(served)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines[:2]] == [["image_search", "serpapi_lens", "ok"], ["image_host", "upload", "ok"]]
    assert all(line.endswith("ok") for line in lines)
    monkeypatch.delenv("SERPER_API_KEY", raising=False)
    broken = [
        "tools.text_search.kind=serper",
        "tools.text_search.url=",
        "tools.reader.url=http://127.0.0.1:9/",
        "tools.summariser.kind=oracle",
    ]
    assert main(["check", *settings(served), *broken]) == 1
    said = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert said["image_search"].endswith("ok")
    assert "SERPER_API_KEY" in said["text_search"]
    assert "nothing answers at http://127.0.0.1:9/" in said["reader"]
    assert "choose chat or extractive" in said["summariser"]


def gone(request: http.Request, n: int) -> http.Response:
    return http.Response(status=403, text="no such key")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["text", "q", "--provider", "bing"], "tools.text_search.kind='bing' is unknown: choose serpapi"),
        (["text", "q", "tools.text_search.url=http://127.0.0.1:9/"], "a service is down"),
        (["text", "q", "tools.serch.url=x"], "there is no setting"),
        (["text", "q", "--config", "nowhere.yaml"], "there is no config file nowhere.yaml"),
        (["image", "nowhere.png"], "nowhere.png: No such file or directory"),
        (["image", "https://example.org/a.png"], "a service refused the request"),
    ],
)
def test_what_is_wrong_is_one_sentence(served: Web, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str) -> None:
    served.rude["google_lens"] = gone
    assert main([*arguments[:2], *settings(served), *arguments[2:]]) == 1
    err = capsys.readouterr().err
    assert said in err
    assert "Traceback" not in err


def test_an_empty_picture_and_a_stray_argument(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.png").touch()
    assert main(["image", str(tmp_path / "empty.png")]) == 1
    assert "is empty" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["text", "two", "words"])
    assert "unexpected 'words'" in capsys.readouterr().err


def test_it_runs_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "mmsr_ray.tools", "--help"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert all(command in done.stdout for command in ("text", "image", "check", "index-pictures", "index-pages", "convert-cache", "tape"))


def test_check_asks_the_cache_and_the_tape(served: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *settings(served), "tools.cache.redis=redis://127.0.0.1:9/0"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert "nothing answers at redis://127.0.0.1:9/0" in lines[-1]
    assert all(line.endswith("ok") for line in lines[:-1])
    assert main(["check", "tools.tape.mode=replay", f"tools.tape.dir={tmp_path}"]) == 1
    assert "is no tape" in capsys.readouterr().out


def test_a_tape_is_recorded_shown_and_replayed_without_the_web(served: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tape = f"tools.tape.dir={tmp_path / 'tape'}"
    assert main(["text", "the tower", "tools.tape.mode=record", tape, *settings(served)]) == 0
    first = capsys.readouterr().out.splitlines()[:-1]
    before = served.counts.total()
    assert main(["text", "the tower", "tools.tape.mode=replay", tape]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == first
    assert served.counts.total() == before
    assert main(["tape", str(tmp_path / "tape")]) == 0
    assert "'the tower' for 'the tower'" in capsys.readouterr().out
    assert main(["tape", str(tmp_path)]) == 1
    assert "is no tape" in capsys.readouterr().err


def test_pages_of_ones_own_are_indexed_and_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pages = tmp_path / "pages.jsonl"
    rows = [
        {
            "url": f"https://pages.example/{name}",
            "title": name.title(),
            "text": f"The {name} was built in {1800 + n}. It stands in the harbour.",
        }
        for n, name in enumerate(("lighthouse", "castle", "bridge"))
    ]
    pages.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main(["index-pages", str(pages), "--out", str(tmp_path / "index")]) == 0
    assert "3 pages indexed" in capsys.readouterr().out
    local = [
        "--provider",
        "bm25",
        "--reader",
        "corpus",
        f"tools.text_search.path={tmp_path / 'index'}",
        f"tools.reader.path={tmp_path / 'index'}",
    ]
    assert main(["text", "who built the castle", *local]) == 0
    assert "built in 1801" in capsys.readouterr().out.split("\n\n")[0]
    assert main(["index-pages", str(tmp_path / "nowhere.jsonl"), "--out", str(tmp_path / "other")]) == 1
    assert "no .jsonl or .parquet file" in capsys.readouterr().err


def test_what_is_no_pickle_and_no_folder_of_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.pkl").write_bytes(b"not a pickle")
    out = str(tmp_path / "out.parquet")
    assert main(["convert-cache", str(tmp_path / "bad.pkl"), "--dataset", str(tmp_path / "d.parquet"), "--out", out]) == 1
    assert "the released cache cannot be read" in capsys.readouterr().err
    assert main(["index-pictures", str(tmp_path / "none"), "--model", "m", "--out", str(tmp_path / "i")]) == 1
    assert "there is no folder" in capsys.readouterr().err


def test_a_picture_on_the_web_is_fetched_for_kinds_that_look_at_pictures(
    served: Web, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cache = tmp_path / "cache.parquet"
    row = {
        "sha": hashlib.sha256(png(3)).hexdigest(),
        "data_id": "a",
        "hits": [{"title": "Known", "url": f"{served.root}/thumb/1", "jpeg": b""}],
    }
    pq.write_table(pa.Table.from_pylist([row], fvqa_cache.SCHEMA), cache)
    local = ["--provider", "fvqa_cache", f"tools.image_search.path={cache}", "tools.private_hosts=[127.0.0.1]"]
    assert main(["image", f"{served.root}/thumb/3", *local]) == 0
    assert "1. Known" in capsys.readouterr().out
    assert main(["image", f"{served.root}/nothing.png", *local]) == 1
    assert "the picture cannot be had" in capsys.readouterr().err


def test_a_folder_of_pictures_is_indexed_and_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tower: dict[str, int] = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4}
    torch.manual_seed(0)
    ViTModel(ViTConfig(**tower, image_size=30, patch_size=5)).save_pretrained(tmp_path / "model")  # type: ignore[arg-type]
    ViTImageProcessor(size={"height": 30, "width": 30}).save_pretrained(tmp_path / "model")
    photos = tmp_path / "photos"
    photos.mkdir()
    for n, word in enumerate(("red_tower", "green_gate", "blue_bridge")):
        Image.effect_mandelbrot((60, 60), (-2 + n, -1.5, n, 1.5), 50).convert("RGB").save(photos / f"{word}.png")
    (photos / "broken.png").write_bytes(b"no picture")
    index = tmp_path / "index"
    assert main(["index-pictures", str(photos), "--model", str(tmp_path / "model"), "--out", str(index), "--batch", "2"]) == 0
    said = capsys.readouterr().out
    assert "3 pictures indexed, 1 files skipped: use it by tools.image_search.kind=image_index" in said
    assert "skipped broken.png" in said
    assert main(["image", str(photos / "green_gate.png"), "--provider", "image_index", f"tools.image_search.path={index}"]) == 0
    assert "1. green gate" in capsys.readouterr().out


def test_a_released_cache_is_converted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    samples = World(0, known=2, demonstrated=2, train=2, test=2).samples("test", 4)
    write_fvqa(tmp_path / "data.parquet", samples)
    entry = {"tool_returned_web_title_list": ["A tower"], "tool_returned_images_urls": ["https://example.org/t.png"]}
    (tmp_path / "cache.pkl").write_bytes(pickle.dumps({samples[0].uid: entry}))
    out = tmp_path / "cache.parquet"
    assert main(["convert-cache", str(tmp_path / "cache.pkl"), "--dataset", str(tmp_path / "data.parquet"), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith("1 searches with 1 hits written")
    assert pq.read_table(out).column("sha").to_pylist() == [hashlib.sha256(samples[0].image).hexdigest()]
