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
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from mmsr_ray.config import Config, ConfigError, ProviderConfig, ToolsConfig, load
from mmsr_ray.tools import show
from mmsr_ray.tools.errors import Redactor, ToolsError
from mmsr_ray.tools.foreign import web_url
from mmsr_ray.tools.http import Http, public, reachable
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.tools.providers import kind_of, services
from mmsr_ray.tools.providers.base import read_key
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
    except (ConfigError, ToolsError) as error:
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
        async with LocalTools(config, ("text_search", "reader", "summariser")) as tools:
            return await tools.text_search(given.query, given.question or given.query)

    return _shown(asyncio.run(search()), given)


def _image(given: argparse.Namespace) -> int:
    config = _config(given, image_search=given.provider, image_host=given.host)
    remote = web_url(given.picture)
    data = b"" if remote else Path(given.picture).read_bytes()
    if not remote and not data:
        raise ToolsError(f"{given.picture} is empty: name a picture")

    async def search() -> ToolResult:
        async with LocalTools(config, ("image_search", "image_host")) as tools:
            return await tools.image_search(data, remote or given.url, "")

    return _shown(asyncio.run(search()), given, _save)


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
    config = _config(given).tools
    rows = asyncio.run(_states(config))
    for name, section, problem in rows:
        sys.stdout.write(f"{name:<13} {section.kind:<13} {problem or 'ok'}\n")
    return 1 if any(problem for *_, problem in rows) else 0


async def _states(config: ToolsConfig) -> list[tuple[str, ProviderConfig, str]]:
    """Each service with what is wrong with it, "" when nothing is."""
    async with Http(Redactor()) as http:
        found = services(config)
        problems = await asyncio.gather(*(_problem(name, section, http) for name, section in found.items()))
    return [(name, section, problem) for (name, section), problem in zip(found.items(), problems, strict=True)]


async def _problem(name: str, section: ProviderConfig, http: Http) -> str:
    try:
        kind = kind_of(name, section)
        kind(section, http, read_key(name, section, kind.key_required))
    except ToolsError as error:
        return str(error)
    why = await reachable(http, section.url, CHECK_SECONDS) if kind.needs_url else ""
    return f"nothing answers at {public(section.url)} ({why}): start the {section.kind} service or correct tools.{name}.url" if why else ""


if __name__ == "__main__":
    sys.exit(main())
