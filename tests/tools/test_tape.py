"""Tapes: what is written, what is played back, and whose tape it is."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from aiohttp import web as http

from mmsr_ray.config import Config, ConfigError, TapeConfig, load
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.tape import Call, Tape, TapeDamaged, claim, describe
from mmsr_ray.types import ImageHit, TextHit, ToolFailure, ToolKind, ToolResult
from tests.tools.web import KEY, Web, configure, png

NOWHERE = "http://127.0.0.1:9"


def call(query: str = "q", topk: int = 5) -> Call:
    return Call(ToolKind.TEXT, query, "why?", topk)


def answer(summary: str = "s") -> ToolResult:
    return ToolResult(ToolKind.TEXT, "q", (TextHit("http://a", summary, "t"),), cost_usd=0.5, seconds=1.0)


def failed(failure: ToolFailure = ToolFailure.TIMEOUT) -> ToolResult:
    return ToolResult(ToolKind.TEXT, "q", failure=failure, detail="slow")


def taped(root: str, folder: Path, mode: str, **tools: object) -> Config:
    return configure(root, tape=TapeConfig(mode=mode, dir=str(folder)), **tools)


def summary(result: ToolResult | None) -> str:
    assert result is not None and isinstance(result.hits[0], TextHit)
    return result.hits[0].summary


def without_numbers(result: ToolResult) -> ToolResult:
    return replace(result, seconds=0.0, cached=False, attempts=1, cost_usd=0.0)


# ---------------------------------------------------------------------------------------------------- files


def test_the_first_answer_wins_and_a_failure_only_until_there_is_one(tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    assert tape.find(call()) is None
    assert tape.keep(call(), failed()).failure is ToolFailure.TIMEOUT
    assert tape.keep(call(), failed(ToolFailure.UNAVAILABLE)).failure is ToolFailure.TIMEOUT
    assert summary(tape.keep(call(), answer("first"))) == "first"
    assert summary(tape.keep(call(), answer("second"))) == "first"
    assert tape.keep(call(), failed()).ok
    assert tape.keep(call("nothing"), failed(ToolFailure.NO_RESULTS)).failure is ToolFailure.NO_RESULTS
    assert tape.keep(call("nothing"), answer()).failure is ToolFailure.NO_RESULTS, "nothing found is an answer"
    tape.close()
    again = Tape(tmp_path)
    assert again.find(call()) == answer("first")
    assert len(again) == 2


@pytest.mark.parametrize("other", [call(topk=4), call("Q"), Call(ToolKind.TEXT, "q", "how?", 5), Call(ToolKind.IMAGE, "q", "why?", 5)])
def test_calls_that_differ_in_anything_are_apart(other: Call) -> None:
    assert other.key != call().key


def test_any_text_comes_back_as_it_was(tmp_path: Path) -> None:
    tape = Tape(tmp_path)
    odd = 'a\ud800 "b"\n\\ \x00 日本 {"thumbnail": "'
    asked = Call(ToolKind.TEXT, odd, odd, 5)
    result = ToolResult(ToolKind.TEXT, odd, (TextHit(odd, odd, odd),), partial=True)
    assert tape.keep(asked, result) == Tape(tmp_path).find(asked) == result


def test_a_thumbnail_is_written_once_and_stays_out_of_memory(tmp_path: Path) -> None:
    import hashlib

    from mmsr_ray.types import Picture

    data = os.urandom(200_000)
    picture = Picture(data, hashlib.sha256(data).hexdigest())
    tape, other = Tape(tmp_path), Tape(tmp_path)
    for number in range(20):
        hits = (ImageHit("a", picture, "u"), ImageHit("b", picture, "v"))
        (tape if number % 2 else other).keep(Call(ToolKind.IMAGE, str(number), "", 5), ToolResult(ToolKind.IMAGE, str(number), hits))
    assert sum(file.stat().st_size for file in tmp_path.glob("*.jsonl")) < 300_000
    assert len(list(tmp_path.glob("*.jsonl"))) == 2, "one file for each that writes"
    found = Tape(tmp_path).find(Call(ToolKind.IMAGE, "7", "", 5))
    assert found is not None and [h.thumbnail for h in found.hits if isinstance(h, ImageHit)] == [picture, picture]
    assert not any(isinstance(value, bytes) for value in vars(tape).values())


def test_two_processes_that_record_see_each_other(tmp_path: Path) -> None:
    one, two = Tape(tmp_path), Tape(tmp_path)
    one.keep(call(), answer("of one"))
    assert summary(two.keep(call(), answer("of two"))) == "of one"
    two.keep(call("x"), answer("of two"))
    assert summary(one.find(call("x"))) == "of two"


WRITER = """
import sys
from pathlib import Path
from mmsr_ray.tools.tape import Call, Tape
from mmsr_ray.types import TextHit, ToolKind, ToolResult
tape, n = Tape(Path(sys.argv[1])), 0
while True:
    tape.keep(Call(ToolKind.TEXT, str(n), "", 5), ToolResult(ToolKind.TEXT, str(n), (TextHit("u", "x" * 100_000),)))
    n += 1
"""


def test_a_kill_in_the_middle_of_a_line_costs_that_line_alone(tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)])
    deadline = time.monotonic() + 60
    while sum(file.stat().st_size for file in tmp_path.glob("*.jsonl")) < 3_000_000 and time.monotonic() < deadline:
        time.sleep(0.01)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    (file,) = tmp_path.glob("*.jsonl")
    whole = file.read_bytes().rsplit(b"\n", 2)[0] + b"\n"
    file.write_bytes(whole + b'{"key": "half of a li')
    tape = Tape(tmp_path)
    assert len(tape) == whole.count(b"\n") >= 25
    tape.keep(call(), answer())  # into a file of its own, so that nothing hangs on to the torn line
    assert Tape(tmp_path).find(call()) == answer()


@pytest.mark.parametrize("line", [b"junk\n", b'{"key": "k"}\n', b'"text"\n', b'{"thumbnail": "0", "data": "x"}\n'])
def test_a_damaged_tape_is_said_to_be_one(tmp_path: Path, line: bytes) -> None:
    tape = Tape(tmp_path)
    tape.keep(call(), answer())
    (file,) = tmp_path.glob("*.jsonl")
    with file.open("ab") as out:
        out.write(line)
    if b"thumbnail" in line:
        image = {
            "key": Call(ToolKind.IMAGE, "p", "", 5).key,
            "kind": "image",
            "query": "p",
            "hits": [{"title": "", "url": "", "thumbnail": "0" * 64}],
        }
        image |= {"at": 1.0, "failure": None, "detail": "", "partial": False, "seconds": 0.0, "attempts": 1, "cost_usd": 0.0}
        file.write_bytes(b'{"thumbnail": "' + b"0" * 64 + b'", "data": "AAAA"}\n' + json.dumps(image).encode() + b"\n")
        with pytest.raises(TapeDamaged, match="not what was recorded"):
            Tape(tmp_path).find(Call(ToolKind.IMAGE, "p", "", 5))
        return
    with pytest.raises(TapeDamaged, match=f"{file.name} has no record at byte"):
        Tape(tmp_path)


def test_a_tape_belongs_to_one_run_and_its_sources(tmp_path: Path) -> None:
    config = configure("http://127.0.0.1:1234").tools
    claim(tmp_path, "mine", config)
    claim(tmp_path, "mine", configure("http://127.0.0.1:4321", deadline_seconds=1.0).tools)  # another port, other limits
    with pytest.raises(ToolsError, match=r"the tape of run 'mine'.*replay"):
        claim(tmp_path, "yours", config)
    with pytest.raises(ToolsError, match=r"recorded with tools\.page_chars = '30000', this run has '99'"):
        claim(tmp_path, "mine", replace(config, page_chars=99))
    stray = tmp_path / "stray"
    stray.mkdir()
    (stray / "data.jsonl").write_text("{}\n")
    with pytest.raises(ToolsError, match="empty or a tape"):
        claim(stray, "mine", config)


def test_settings_that_cannot_be_are_refused() -> None:
    needed = ["model.path=m", "data.train=x", "data.test=x"]
    with pytest.raises(ConfigError, match="choose off, record, replay or replay_then_live"):
        load(None, [*needed, "tools.tape.mode=rewind", "tools.tape.dir=x"])
    with pytest.raises(ConfigError, match=r"needs tools\.tape\.dir"):
        load(None, [*needed, "tools.tape.mode=record"])


# ---------------------------------------------------------------------------------------------------- with the tools


async def ask(tools: LocalTools) -> list[ToolResult]:
    texts = [tools.text_search(query, "which?") for query in ("one", "two", "one", "nothing")]
    pictures = [tools.image_search(png(number), None, "who?") for number in (1, 2)]
    return list(await asyncio.gather(*texts, *pictures))


async def test_what_was_recorded_is_replayed_byte_for_byte_without_web_and_keys(
    web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    web.rude["google"] = lambda request, n: http.json_response({"organic_results": []}) if request.query["q"] == "nothing" else None
    recording = taped(web.root, tmp_path, "record")
    recording.tools.text_search.key_env = recording.tools.image_search.key_env = "TEST_KEY"
    monkeypatch.setenv("TEST_KEY", KEY)
    recording.tools.text_search.price.per_call = 0.25
    async with LocalTools(recording) as tools:
        recorded = await ask(tools)
        assert sum(result.cost_usd for result in recorded) >= 0.5
    before = web.counts.total()

    monkeypatch.delenv("TEST_KEY")
    replaying = taped(NOWHERE, tmp_path, "replay")
    replaying.run.name = "another"
    replaying.tools.text_search.key_env = replaying.tools.image_search.key_env = "TEST_KEY"
    async with LocalTools(replaying) as tools:
        await tools.check()
        replayed = await ask(tools)
        stats = tools.stats()
    assert [without_numbers(result) for result in replayed] == [without_numbers(result) for result in recorded]
    assert [result.failure for result in replayed] == [None, None, None, ToolFailure.NO_RESULTS, None, None]
    assert all(result.cached and result.cost_usd == 0 and result.seconds < 1 for result in replayed)
    assert web.counts.total() == before
    assert (stats["tape.hits"], stats["calls.text"], stats.get("tape.misses", 0)) == (6, 4, 0)


async def test_a_miss_in_a_replay_names_the_call(web: Web, tmp_path: Path) -> None:
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        await tools.text_search("one", "which?")
    async with LocalTools(taped(NOWHERE, tmp_path, "replay")) as tools:
        missed = await tools.text_search("two", "which one?")
    assert missed.failure is ToolFailure.TAPE_MISS and missed.failure.infra
    assert all(words in missed.detail for words in ("'two'", "'which one?'", "agent.topk=5", "replay_then_live", str(tmp_path)))


async def test_what_is_not_on_the_tape_is_asked_for_live_and_written_down(web: Web, tmp_path: Path) -> None:
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        one = await tools.text_search("one", "which?")
    counts = web.counts["google"]
    longer = taped(web.root, tmp_path, "replay_then_live")
    longer.run.name = "longer"
    async with LocalTools(longer) as tools:
        assert (await tools.text_search("one", "which?")).hits == one.hits
        assert web.counts["google"] == counts
        two = await tools.text_search("two", "which?")
        assert web.counts["google"] == counts + 1
    async with LocalTools(taped(NOWHERE, tmp_path, "replay")) as tools:
        assert (await tools.text_search("two", "which?")).hits == two.hits


async def test_a_recording_goes_on_after_a_restart_with_the_answers_it_gave(web: Web, tmp_path: Path) -> None:
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        first = await tools.text_search("one", "which?")
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        assert (await tools.text_search("one", "which?")).hits == first.hits  # the chat service numbers its summaries
    other = taped(web.root, tmp_path, "record")
    other.run.name = "other"
    with pytest.raises(ToolsError, match=r"another tools\.tape\.dir"):
        LocalTools(other)


async def test_equal_calls_at_once_get_one_answer(web: Web, tmp_path: Path) -> None:
    web.delay["v1"] = 0.05
    config = taped(web.root, tmp_path, "record")
    config.tools.cache.memory_bytes = 0  # each call makes summaries of its own
    async with LocalTools(config) as tools:
        results = await asyncio.gather(*(tools.text_search("one", "which?") for _ in range(8)))
    assert all(result.hits == results[0].hits for result in results)


async def test_a_failure_is_replayed_only_where_no_answer_followed(web: Web, tmp_path: Path) -> None:
    web.rude["google"] = lambda request, n: http.Response(status=400) if request.query["q"] == "bad" or n == 1 else None
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        assert (await tools.text_search("one", "which?")).failure is ToolFailure.REJECTED
        one = await tools.text_search("one", "which?")
        assert one.ok
        assert (await tools.text_search("bad", "which?")).failure is ToolFailure.REJECTED
    async with LocalTools(taped(NOWHERE, tmp_path, "replay")) as tools:
        assert (await tools.text_search("one", "which?")).hits == one.hits
        assert (await tools.text_search("bad", "which?")).failure is ToolFailure.REJECTED


async def test_no_key_gets_onto_a_tape_or_past_it(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    config = taped(web.root, tmp_path, "record")
    config.tools.text_search.key_env = "TEST_KEY"
    leaky = [{"title": f"key {KEY}", "link": f"{web.root}/wiki/1?api_key={KEY}"}]
    web.rude["google"] = lambda request, n: http.json_response({"organic_results": leaky})
    async with LocalTools(config) as tools:
        result = await tools.text_search("one", "which?")
    assert result.ok and "***" in result.hits[0].url
    written = b"".join(file.read_bytes() for file in tmp_path.glob("*"))  # noqa: ASYNC240
    assert KEY.encode() not in written and json.dumps(KEY)[1:-1].encode() not in written


async def test_a_tape_that_is_not_there_or_empty_is_said_at_the_start(tmp_path: Path, web: Web) -> None:
    with pytest.raises(ToolsError, match=r"is no tape.*mode=record"):
        LocalTools(taped(NOWHERE, tmp_path / "none", "replay"))
    async with LocalTools(taped(web.root, tmp_path, "record")):
        pass
    with pytest.raises(ToolsError, match="nothing on the tape"):
        LocalTools(taped(NOWHERE, tmp_path, "replay"))


async def test_a_tape_that_cannot_be_written_is_a_typed_failure(web: Web, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        await tools.text_search("one", "which?")
        full = os.write

        def no_space(descriptor: int, data: bytes) -> int:
            if data.startswith(b'{"key"'):
                full(descriptor, data[:40])
                raise OSError(28, "No space left on device")
            return full(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", no_space)
            lost = await tools.text_search("two", "which?")
        assert lost.failure is ToolFailure.UNAVAILABLE and "No space left" in lost.detail
        assert (await tools.text_search("two", "which?")).ok
    assert len(Tape(tmp_path)) == 2


async def test_a_tape_is_readable(web: Web, tmp_path: Path) -> None:
    async with LocalTools(taped(web.root, tmp_path, "record")) as tools:
        await ask(tools)
    text = "\n".join(describe(tmp_path))
    assert "tape of run 'run'" in text and "5 calls" in text
    assert "text searches, answered: 3" in text and "image searches, answered: 2" in text
    assert "'one' for 'which?'" in text and f"{web.root}/wiki/0" in text
    with pytest.raises(ToolsError, match="is no tape"):
        list(describe(tmp_path / "none"))
