"""The tape of a run: the answer of every tool call, on disk, so that the run can be repeated without a web and without its bill.

Promise: a call has one answer. The first one (hits, or "nothing found") is kept, and from then on it is what every equal
call gets, while recording too; a failure of the infrastructure is kept only until there is an answer. So what a run saw
can be played back byte for byte.

A tape is a folder on storage that all nodes reach: `tape.json` says whose it is, and each process appends JSON lines to a
file of its own. A thumbnail is a line too, once per content hash. A line that a kill cut short is passed over. In memory
is an index of offsets, not the answers. No Ray in here.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import time
import uuid
from binascii import Error as Base64Error
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from mmsr_ray.config import ToolsConfig
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.providers import services
from mmsr_ray.types import FoundPicture, ImageHit, Picture, TextHit, ToolFailure, ToolKind, ToolResult

FORMAT = 1
HEADER = "tape.json"
_THUMBNAIL = b'{"thumbnail": "'  # how such a line begins: the index reads its hash without parsing the picture
_SHA = 64  # hex digits
_FIELDS = {"key", "at", "kind", "query", "failure", "detail", "partial", "seconds", "attempts", "cost_usd", "hits"}  # that are read


class TapeMiss(RuntimeError):
    """A replay asked for what was never recorded. One sentence that names the call."""


class TapeDamaged(RuntimeError):
    """A line that is no record, or a thumbnail that is not what its hash says."""


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call as the model made it. Two calls are the same one when all of this is equal."""

    kind: ToolKind
    query: str  # the text query, or the picture's sha
    question: str  # "" for a picture
    topk: int

    @property
    def key(self) -> str:
        parts = [FORMAT, self.kind, self.query, self.question, self.topk]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()

    def __str__(self) -> str:
        about = f" for the question {self.question!r}" if self.question else ""
        return f"{self.kind} search {self.query!r}{about} with agent.topk={self.topk}"


class _Place(NamedTuple):
    """Where a line lies. Ordered as records of one call are: answers before failures, then by time."""

    failed: bool
    at: float
    file: str
    offset: int
    length: int


class Tape:
    """The files of one folder as one table. Of one thread; other processes may write to the folder at the same time."""

    def __init__(self, folder: Path) -> None:
        """A folder that is not there is an empty tape. Raises TapeDamaged."""
        self._folder = folder
        self._read_up_to: dict[str, int] = {}
        self._calls: dict[str, _Place] = {}
        self._thumbnails: dict[str, _Place] = {}
        self._readers: dict[str, int] = {}  # file -> descriptor
        self._writer: tuple[str, int] | None = None  # file of this process and its descriptor, from the first write on
        self.refresh()

    def __len__(self) -> int:
        """Calls with an answer or a failure."""
        return len(self._calls)

    def close(self) -> None:
        for descriptor in [*self._readers.values(), *([self._writer[1]] if self._writer else [])]:
            os.close(descriptor)
        self._readers.clear()
        self._writer = None

    # ------------------------------------------------------------------------------------------------ calls

    def find(self, call: Call) -> ToolResult | None:
        """What is kept of a call: its answer, else the first failure, else None. Raises TapeDamaged and OSError."""
        place = self._calls.get(call.key)
        if place is None or place.failed:
            self.refresh()
            place = self._calls.get(call.key)
        return None if place is None else self._result(place)

    def keep(self, call: Call, result: ToolResult) -> ToolResult:
        """Write `result` down unless the call has an answer by now; returns what is kept. Raises TapeDamaged and OSError."""
        self.refresh()
        found = self._calls.get(call.key)
        failed = result.failure is not None and result.failure.infra
        if found is None or (found.failed and not failed):
            self._write(call, result)
        return self._result(self._calls[call.key])

    # ------------------------------------------------------------------------------------------------ reading

    def refresh(self) -> None:
        """Take in what all processes have written since the last time."""
        try:
            files = sorted((entry.name, entry.stat().st_size) for entry in os.scandir(self._folder) if entry.name.endswith(".jsonl"))
        except FileNotFoundError:
            return
        for name, size in files:
            if size > self._read_up_to.get(name, 0):
                self._index(name)

    def _index(self, name: str) -> None:
        offset = self._read_up_to.get(name, 0)
        with (self._folder / name).open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):
                    break  # cut short by a kill, or still being written
                self._take(line, name, offset)
                offset += len(line)
                self._read_up_to[name] = offset

    def _take(self, line: bytes, name: str, offset: int) -> None:
        if line.startswith(_THUMBNAIL):
            sha = line[len(_THUMBNAIL) : len(_THUMBNAIL) + _SHA].decode()
            self._thumbnails.setdefault(sha, _Place(False, 0.0, name, offset, len(line)))
            return
        record = _parsed(line, name, offset)
        place = _Place(_is_infra(record["failure"]), record["at"], name, offset, len(line))
        self._calls[record["key"]] = min(place, self._calls.get(record["key"], place))

    def _line(self, place: _Place) -> bytes:
        if place.file not in self._readers:
            self._readers[place.file] = os.open(self._folder / place.file, os.O_RDONLY)
        return os.pread(self._readers[place.file], place.length, place.offset)

    def _result(self, place: _Place) -> ToolResult:
        record = _parsed(self._line(place), place.file, place.offset)
        hits = tuple(self._hit(record["kind"], hit) for hit in record["hits"])
        return ToolResult(
            ToolKind(record["kind"]),
            record["query"],
            hits,  # type: ignore[arg-type]  # all of one kind
            ToolFailure(record["failure"]) if record["failure"] else None,
            record["detail"],
            seconds=record["seconds"],
            attempts=record["attempts"],
            cost_usd=record["cost_usd"],
            partial=record["partial"],
        )

    def _hit(self, kind: str, hit: Mapping[str, str]) -> ImageHit | TextHit:
        if kind not in (ToolKind.IMAGE, ToolKind.FINDER):
            return TextHit(hit["url"], hit["summary"], hit["title"])
        shown = hit["title"], self._thumbnail(hit["thumbnail"]), hit["url"]
        return ImageHit(*shown) if kind == ToolKind.IMAGE else FoundPicture(*shown, hit["picture_url"], hit["source"], hit["licence"])

    def _thumbnail(self, sha: str) -> Picture:
        place = self._thumbnails.get(sha)
        if place is None:
            raise TapeDamaged(f"the tape in {self._folder} lacks thumbnail {sha}")
        try:
            data = base64.b64decode(_parsed(self._line(place), place.file, place.offset)["data"])
        except Base64Error:
            data = b""
        if hashlib.sha256(data).hexdigest() != sha:
            raise TapeDamaged(f"thumbnail {sha} in {self._folder / place.file} is not what was recorded")
        return Picture(data, sha)

    # ------------------------------------------------------------------------------------------------ writing

    def _write(self, call: Call, result: ToolResult) -> None:
        lines = []
        for hit in result.hits:
            if isinstance(hit, ImageHit) and hit.thumbnail.sha not in self._thumbnails:
                lines.append(_THUMBNAIL.decode() + f'{hit.thumbnail.sha}", "data": "{base64.b64encode(hit.thumbnail.data).decode()}"}}')
        record: dict[str, Any] = {"key": call.key, "at": time.time(), "kind": call.kind, "query": call.query, "question": call.question}
        record |= {"topk": call.topk, "failure": result.failure, "detail": result.detail, "partial": result.partial}
        record |= {"seconds": round(result.seconds, 4), "attempts": result.attempts, "cost_usd": result.cost_usd}
        record["hits"] = [_recorded(hit) for hit in result.hits]
        name, descriptor = self._open_writer()
        data = "".join(line + "\n" for line in dict.fromkeys([*lines, json.dumps(record)])).encode()
        try:
            while data:
                data = data[os.write(descriptor, data) :]
        except OSError:
            os.close(descriptor)  # it may end in half a line: the next record begins a new file
            self._writer = None
            raise
        self._index(name)

    def _open_writer(self) -> tuple[str, int]:
        if self._writer is None:
            self._folder.mkdir(parents=True, exist_ok=True)
            name = f"{datetime.now(UTC):%Y%m%d-%H%M%S}-{uuid.uuid4().hex[:8]}.jsonl"
            self._writer = name, os.open(self._folder / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o644)
        return self._writer


def _parsed(line: bytes, name: str, offset: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
        if not isinstance(record, dict) or not (record.keys() >= _FIELDS or "data" in record):
            raise ValueError("no record")
        _is_infra(record.get("failure"))
    except ValueError as error:
        raise TapeDamaged(f"{name} has no record at byte {offset}") from error
    return record


def _recorded(hit: ImageHit | TextHit) -> dict[str, str]:
    record = {"title": hit.title, "url": hit.url}
    if isinstance(hit, TextHit):
        return record | {"summary": hit.summary}
    more = {"picture_url": hit.picture_url, "source": hit.source, "licence": hit.licence} if isinstance(hit, FoundPicture) else {}
    return record | {"thumbnail": hit.thumbnail.sha} | more


def _is_infra(failure: str | None) -> bool:
    return failure is not None and ToolFailure(failure).infra


# ---------------------------------------------------------------------------------------------------- whose tape it is


def sources(config: ToolsConfig) -> dict[str, str]:
    """Where answers come from, in words: what must not change within a tape. Without ports, keys and user names."""
    words = {}
    for name, section in services(config).items():
        url = urlsplit(section.url)
        words[name] = " ".join(part for part in (section.kind, f"{url.hostname or ''}{url.path}", section.model, section.path) if part)
    return words | {"page_chars": str(config.page_chars)}


def claim(folder: Path, run: str, config: ToolsConfig) -> None:
    """Make `folder` the tape of this run, or find that it is. Raises ToolsError when it is another's."""
    file = folder / HEADER
    wanted = {"format": FORMAT, "run": run, "sources": sources(config)}
    if not file.is_file():
        if folder.is_dir() and any(folder.glob("*.jsonl")):
            raise ToolsError(f"{folder} holds JSON lines and no {HEADER}: set tools.tape.dir to a folder that is empty or a tape")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{HEADER}.partial"
        partial.write_text(json.dumps(wanted | {"made": f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC"}, indent=1) + "\n")
        partial.replace(file)
        return
    found = header(folder)
    if found.get("run") != run:
        raise ToolsError(
            f"{folder} is the tape of run {found.get('run')!r}: record run {run!r} into another tools.tape.dir, "
            "or set tools.tape.mode to replay or replay_then_live"
        )
    changed = [name for name, words in wanted["sources"].items() if found["sources"].get(name) != words]
    if changed:
        name = changed[0]
        raise ToolsError(
            f"{folder} was recorded with tools.{name} = {found['sources'].get(name)!r}, this run has {wanted['sources'][name]!r}: "
            "set it back, or record into another tools.tape.dir"
        )


def header(folder: Path) -> dict[str, Any]:
    """What `tape.json` says. Raises ToolsError when it is missing or of another format."""
    try:
        found = json.loads((folder / HEADER).read_text())
    except (OSError, ValueError) as error:
        raise ToolsError(f"{folder} is no tape ({HEADER}: {type(error).__name__}): record one with tools.tape.mode=record") from error
    if found.get("format") != FORMAT or not isinstance(found.get("sources"), Mapping):
        raise ToolsError(f"the tape in {folder} has format {found.get('format')}, this is format {FORMAT}: record it anew")
    return found


# ---------------------------------------------------------------------------------------------------- for people


def describe(folder: Path) -> Iterator[str]:
    """The tape in lines of text: whose it is, what is in it, and every call in the order of time. Raises ToolsError."""
    about = header(folder)
    yield f"tape of run {about['run']!r}, begun {about['made']}, format {about['format']}"
    yield from (f"  {name}: {words}" for name, words in about["sources"].items())
    records: list[dict[str, Any]] = []
    tape = Tape(folder)
    try:
        for place in sorted(tape._calls.values(), key=lambda place: place.at):
            records.append(_parsed(tape._line(place), place.file, place.offset))
        pictures = len(tape._thumbnails)
    except (TapeDamaged, OSError) as error:
        raise ToolsError(f"the tape in {folder} is damaged: {error}") from error
    finally:
        tape.close()
    counts = Counter((record["kind"], record["failure"] or "answered") for record in records)
    yield f"{len(records)} calls, {pictures} thumbnails, {sum(record['cost_usd'] for record in records):.4f} USD when recorded"
    yield from (f"  {kind} searches, {how}: {count}" for (kind, how), count in sorted(counts.items()))
    for record in records:
        when = f"{datetime.fromtimestamp(record['at'], UTC):%Y-%m-%d %H:%M:%S}"
        yield f"{when}  {record['kind']:<5}  {record['failure'] or str(len(record['hits'])) + ' hits':<12}  {_subject(record)}"
        yield from (f"    {hit['title']!r}  {hit['url']}" for hit in record["hits"])


def _subject(record: Mapping[str, Any]) -> str:
    if record["kind"] == ToolKind.IMAGE:
        return f"picture {record['query'][:12]}"
    return f"{record['query']!r} for {record['question']!r}"
