"""Try the tools by hand: `python -m mmsr_ray.tools [--config run.yaml] text|image|check [query or picture file] [key=value ...]`.

The same pipeline, limits and cache as in a run; a result is written to stdout as one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from mmsr_ray.config import Config, ConfigError, load
from mmsr_ray.tools.errors import ToolsError
from mmsr_ray.tools.local import LocalTools
from mmsr_ray.types import TextHit, ToolResult


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m mmsr_ray.tools", description="Call a tool of the agent once.")
    parser.add_argument("--config", help="YAML of a run; the defaults without it")
    parser.add_argument("--question", default="", help="the user's question, for the summaries (default: the query)")
    parser.add_argument("--url", help="public URL of the picture, instead of uploading it")
    parser.add_argument("tool", choices=["text", "image", "check"])
    parser.add_argument("subject", nargs="?", default="", help="the query, or the picture's file")
    parser.add_argument("overrides", nargs="*", help="settings, key=value")
    given = parser.parse_args(arguments)
    if given.tool != "check" and not given.subject:
        parser.error(f"{given.tool} needs a {'query' if given.tool == 'text' else 'picture file'}")
    try:
        overrides = given.overrides if given.tool != "check" else [item for item in [given.subject, *given.overrides] if item]
        if given.config is None:  # a run must name these three; trying a tool needs none of them
            overrides = ["model.path=none", "data.train=none", "data.test=none", *overrides]
        result = asyncio.run(_run(load(given.config, overrides), given))
    except (ConfigError, ToolsError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    if result is not None:
        sys.stdout.write(json.dumps(_shown(result), indent=1, ensure_ascii=False) + "\n")
    return 0 if result is None or result.ok else 2


async def _run(config: Config, given: argparse.Namespace) -> ToolResult | None:
    async with LocalTools(config) as tools:
        if given.tool == "check":
            return await tools.check()
        if given.tool == "text":
            return await tools.text_search(given.subject, given.question or given.subject)
        return await tools.image_search(await asyncio.to_thread(Path(given.subject).read_bytes), given.url, given.question)


def _shown(result: ToolResult) -> dict[str, object]:
    hits = [
        {"title": h.title, "url": h.url}
        | ({"summary": h.summary} if isinstance(h, TextHit) else {"thumbnail_bytes": len(h.thumbnail.data)})
        for h in result.hits
    ]
    facts = {"failure": result.failure, "detail": result.detail, "seconds": round(result.seconds, 3), "attempts": result.attempts}
    return {"tool": result.kind, "query": result.query, "hits": hits, "cached": result.cached, "cost_usd": result.cost_usd} | facts


if __name__ == "__main__":
    sys.exit(main())
