"""The search tools from the shell: try them, check services and keys, make what the local kinds search.

    python -m mmsr_ray.tools text "height of the Eiffel Tower" --provider serper --reader trafilatura
    python -m mmsr_ray.tools text "Eiffel Tower" --question "When was it painted last?" --summariser extractive
    python -m mmsr_ray.tools image photo.jpg --provider serper_lens --save thumbnails/ tools.image_host.kind=s3 tools.s3.bucket=mine
    python -m mmsr_ray.tools image https://example.org/photo.jpg --json
    python -m mmsr_ray.tools check --config run.yaml
    python -m mmsr_ray.tools index-pictures photos/ --model google/siglip2-base-patch16-224 --out index/
    python -m mmsr_ray.tools index-pages pages.jsonl --out pages/
    python -m mmsr_ray.tools convert-cache fvqa_train_image_search_results_cache.pkl --dataset train.parquet --out cache.parquet
    python -m mmsr_ray.tools tape tape/

Settings are those of a run: a YAML with --config, and key=value after the command. Keys come from the environment. The
pipeline, limits and cache are the same as in training. Exit status: 0 fine, 1 with one sentence about what is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmsr_ray.config import Config, ConfigError, ToolsConfig, load
from mmsr_ray.data.schema import DataError
from mmsr_ray.tools import show
from mmsr_ray.tools.errors import ProviderError, Redactor, ToolsError
from mmsr_ray.tools.foreign import web_url
from mmsr_ray.tools.http import open_http
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers import CACHE, corpus, fvqa_cache, kind_of, make, read_keys, services
from mmsr_ray.tools.stores import open_store
from mmsr_ray.tools.tape import describe
from mmsr_ray.tools.taped import needs_live, prepare
from mmsr_ray.types import ImageHit, ToolResult

_NOT_NEEDED = ("model.path=none", "data.train=none", "data.test=none")  # a run must name these; trying a tool needs none of them
CHECK_SECONDS = 5.0


def main(arguments: list[str] | None = None) -> int:
    parser = _parser()
    given, given.overrides = parser.parse_known_args(arguments)  # not as positionals: those may not follow an option
    for item in given.overrides:
        if item.startswith("-") or "=" not in item or "config" not in given:
            parser.error(f"unexpected {item!r}")
    command: Callable[[argparse.Namespace], int] = given.run
    try:
        return command(given)
    except (ConfigError, ToolsError, DataError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    except OSError as error:
        sys.stderr.write(f"{error.filename}: {error.strerror}\n" if error.filename else f"{error}\n")
        return 1
    except KeyboardInterrupt:
        return 130


# ---------------------------------------------------------------------------------------------------- arguments


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog="python -m mmsr_ray.tools", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(metavar="command", required=True)

    def add(name: str, run: Callable[[argparse.Namespace], int], what: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=what, description=what)
        made.set_defaults(run=run)
        return made

    text = add("text", _text, "search the web for a query; summaries of the pages")
    text.add_argument("query")
    text.add_argument("--question", default="", help="what the summaries are written for (default: the query)")
    text.add_argument("--provider", help="kind of tools.text_search: serpapi, serper, searxng, ...")
    text.add_argument("--reader", help="kind of tools.reader: jina, trafilatura, ...")
    text.add_argument("--summariser", help="kind of tools.summariser: chat, extractive")
    image = add("image", _image, "search the web for a picture; titles and thumbnails of pages that show it")
    image.add_argument("picture", help="a file, or the http(s) URL of a picture")
    image.add_argument("--url", help="public URL of the file, so that it need not be uploaded")
    image.add_argument("--provider", help="kind of tools.image_search: serpapi_lens, serper_lens, ...")
    image.add_argument("--host", help="kind of tools.image_host, where a picture without URL is put: upload, s3, none")
    image.add_argument("--save", type=Path, metavar="DIR", help="write the thumbnails there")
    check = add("check", _check, "is every service there, and every key set? One line each; asks nothing that costs")
    pictures = add("index-pictures", _index_pictures, "make what image_search.kind=image_index searches, of a folder of pictures")
    pictures.add_argument("folder", type=Path, help="pictures; metadata.jsonl or metadata.csv in it gives file, title and url")
    pictures.add_argument("--model", required=True, help="folder or hub id of a vision model of transformers")
    pictures.add_argument("--out", type=Path, required=True, metavar="DIR")
    pictures.add_argument("--batch", type=int, default=32, help="pictures embedded at once")
    pages = add("index-pages", _index_pages, "make what text_search.kind=bm25 and reader.kind=corpus search, of pages of your own")
    pages.add_argument("pages", type=Path, help=".jsonl or .parquet file, or a folder of them, with url, title, text")
    pages.add_argument("--out", type=Path, required=True, metavar="DIR")
    cache = add("convert-cache", _convert_cache, "make what image_search.kind=fvqa_cache searches, of the cache released with FVQA")
    cache.add_argument("pickle", type=Path)
    cache.add_argument(
        "--dataset", type=Path, nargs="+", required=True, metavar="P.parquet", help="FVQA files whose pictures were searched"
    )
    cache.add_argument("--out", type=Path, required=True, metavar="F.parquet")
    tape = add("tape", _tape, "what is on a tape: its run, its services, every call")
    tape.add_argument("folder", type=Path)
    for searching in (text, image):
        searching.add_argument("--json", action="store_true", help="one JSON object instead of text")
    for configured in (text, image, check):
        configured.add_argument("--config", help="YAML of a run; the defaults without it")
        configured.epilog = "Any further key=value is a setting of mmsr_ray/config.py, over the file's."
    return parser


def _config(given: argparse.Namespace, **kinds: str | None) -> Config:
    """The config with `kinds` (section: kind) chosen. Raises ConfigError.

    The address of another kind of service means nothing to this one: it goes, unless the command line names it again.
    """
    needed = [] if given.config else list(_NOT_NEEDED)
    before = load(given.config, [*needed, *given.overrides]).tools
    chosen = []
    for section, kind in kinds.items():
        if kind is not None and kind != getattr(before, section).kind:
            chosen += [f"tools.{section}.kind={kind}", f"tools.{section}.url=", f"tools.{section}.key_env="]
    return load(given.config, [*needed, *chosen, *given.overrides])


# ---------------------------------------------------------------------------------------------------- searching


def _text(given: argparse.Namespace) -> int:
    config = _config(given, text_search=given.provider, reader=given.reader, summariser=given.summariser)

    async def search() -> ToolResult:
        async with LocalTools(config, ("text_search", "reader", "summariser", CACHE)) as tools:
            return await tools.text_search(given.query, given.question or given.query)

    return _shown(asyncio.run(search()), given)


def _image(given: argparse.Namespace) -> int:
    config = _config(given, image_search=given.provider, image_host=given.host)
    remote = web_url(given.picture)
    data = b"" if remote else Path(given.picture).read_bytes()
    if not remote and not data:
        raise ToolsError(f"{given.picture} is empty: name a picture")

    async def search() -> ToolResult:
        async with LocalTools(config, ("image_search", "image_host", CACHE)) as tools:
            seen = data or await _fetched(remote, config)
            return await tools.image_search(seen, remote or given.url, "")

    return _shown(asyncio.run(search()), given, _save)


async def _fetched(url: str, config: Config) -> bytes:
    """The picture itself where the provider looks at pictures, b"" where it wants the address only. Raises ToolsError."""
    section = services(config.tools)["image_search"]
    if kind_of("image_search", section).wants_photo_url:
        return b""
    async with open_http(config.tools, Redactor()) as http:
        try:
            return (await http.fetch(url, timeout=section.timeout_seconds, limit=config.data.max_image_bytes)).body
        except ProviderError as error:
            raise ToolsError(f"the picture cannot be had: {error.detail}") from None


def _shown(result: ToolResult, given: argparse.Namespace, save: Callable[[ToolResult, Path], list[str]] | None = None) -> int:
    saved = save(result, given.save) if save and given.save else None
    sys.stdout.write(json.dumps(show.as_json(result), indent=1, ensure_ascii=False) if given.json else show.as_text(result, saved))
    sys.stdout.write("\n")
    if not result.ok:
        sys.stderr.write(f"{show.failure_sentence(result)}\n")
    return 0 if result.ok else 1


def _save(result: ToolResult, folder: Path) -> list[str]:
    """The thumbnails as files in their own formats, numbered like the hits."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for number, hit in enumerate(result.hits, 1):
        if isinstance(hit, ImageHit):
            with Image.open(io.BytesIO(hit.thumbnail.data)) as picture:
                file = folder / f"{number}.{(picture.format or 'bin').lower()}"
            file.write_bytes(hit.thumbnail.data)
            files.append(str(file))
    return files


# ---------------------------------------------------------------------------------------------------- checking


def _check(given: argparse.Namespace) -> int:
    rows = asyncio.run(_states(_config(given)))
    for name, what, problem in rows:
        sys.stdout.write(f"{name:<13} {what:<13} {problem or 'ok'}\n")
    return 1 if any(problem for *_, problem in rows) else 0


async def _states(config: Config) -> list[tuple[str, str, str]]:
    """What a run would use, its kind, and what is wrong with it ("": nothing)."""
    tools = config.tools
    if not needs_live(tools):
        return [("tape", tools.tape.mode, _said(lambda: prepare(config)))]
    names = services(tools)
    problems = await asyncio.gather(*(_problem(name, tools) for name in names))
    rows = [(name, section.kind, problem) for (name, section), problem in zip(names.items(), problems, strict=True)]
    return [*rows, ("cache", "redis" if tools.cache.redis else "file" if tools.cache.dir else "memory", await _cache_problem(tools))]


async def _problem(name: str, tools: ToolsConfig) -> str:
    try:
        keys = read_keys(tools, (name,))
        async with open_http(tools, Redactor(keys.secrets())) as http:
            return http.redact(await make(name, tools, http, keys).probe(CHECK_SECONDS))
    except ToolsError as error:
        return str(error)


async def _cache_problem(tools: ToolsConfig) -> str:
    try:
        store = open_store(tools.cache, Counter(), read_keys(tools, (CACHE,)).get(CACHE))
    except ToolsError as error:
        return str(error)
    try:
        return await store.problem()
    finally:
        await store.close()


def _said(what: Callable[[], object]) -> str:
    try:
        what()
    except ToolsError as error:
        return str(error)
    return ""


# ---------------------------------------------------------------------------------------------------- making and looking


def _index_pictures(given: argparse.Namespace) -> int:
    from mmsr_ray.tools.providers.image_index import build  # torch and transformers: seconds to import

    built = build(given.folder, given.model, given.out, given.batch)
    _say(
        f"{built.pictures} pictures indexed, {len(built.skipped)} files skipped: "
        f"use it by tools.image_search.kind=image_index tools.image_search.path={given.out}"
    )
    for reason in built.skipped:
        _say(f"  skipped {reason}")
    return 0


def _index_pages(given: argparse.Namespace) -> int:
    built = corpus.build(given.pages, given.out)
    _say(
        f"{built.pages} pages indexed, {built.words} words, {built.skipped} rows skipped, {built.repeated} repeated: use it by "
        f"tools.text_search.kind=bm25 tools.text_search.path={given.out} tools.reader.kind=corpus tools.reader.path={given.out}"
    )
    return 0


def _convert_cache(given: argparse.Namespace) -> int:
    made = fvqa_cache.convert(given.pickle, given.dataset, given.out)
    _say(
        f"{made.pictures} searches with {made.hits} hits written ({made.repeated} of a picture that came before, {made.hits_dropped} hits "
        f"without title or thumbnail dropped; {made.entries_without_row} entries have no row, {made.rows_without_entry} rows no entry): "
        f"use it by tools.image_search.kind=fvqa_cache tools.image_search.path={given.out}"
    )
    return 0


def _tape(given: argparse.Namespace) -> int:
    for line in describe(given.folder):
        _say(line)
    return 0


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


if __name__ == "__main__":
    sys.exit(main())
