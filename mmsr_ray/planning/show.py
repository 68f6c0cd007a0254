"""A plan for people, and as JSON. Pure: rich tables, nothing is written here."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from rich.console import Group
from rich.table import Table
from rich.text import Text

from mmsr_ray.config import Config
from mmsr_ray.planning.plan import PARTS, Plan
from mmsr_ray.planning.sizing import Size


def as_dict(config: Config, found: Plan, sizes: dict[str, Size]) -> dict[str, Any]:
    """For the JSON file."""
    asked = {
        "run": config.run.name,
        "groups_per_step": config.grpo.groups_per_step,
        "group_size": config.grpo.group_size,
        "staleness": config.grpo.staleness,
        "num_runners": config.rollout.num_runners,
        "ranks": config.learner.world_size,
        "tool_actors": config.tools.actors,
    }
    return {"asked": asked, "plan": asdict(found) | {"bottleneck": found.bottleneck}, "sizes": {k: asdict(v) for k, v in sizes.items()}}


def shown(config: Config, found: Plan, sizes: dict[str, Size]) -> Group:
    """What a terminal shows."""
    c = config
    title = (
        f"{c.run.name}: {c.grpo.groups_per_step} groups of {c.grpo.group_size}, staleness {c.grpo.staleness}; {c.rollout.num_runners} runners, "
        f"{c.learner.world_size} ranks, {c.tools.actors} tool actors, {found.gpus:g} GPUs"
    )
    blocks: list[Any] = [Text(title, style="bold"), _step(found), _parts(found), _services(found)]
    if found.what_if:
        blocks.append(_what_if(found))
    if sizes:
        blocks.append(_sizes(sizes))
    blocks += [Text(_money(found)), *(Text(f"! {remark}", style="yellow") for remark in found.remarks)]
    return Group(*blocks)


def _step(p: Plan) -> Table:
    table = Table("seconds of a step", *PARTS, "total")
    table.add_row("", *(f"{p.seconds[name]:.2f}" for name in PARTS), f"{p.seconds['total']:.2f}")
    table.add_row("share", *(f"{p.seconds[name] / p.seconds['total']:.0%}" for name in PARTS), "")
    return table


def _parts(p: Plan) -> Table:
    table = Table("part", "busy", "")
    table.add_row(
        "engines",
        f"{p.engines_busy:.0%}",
        f"{p.batch:.0f} sequences in each while busy; {p.tokens_per_second:,.0f} sampled tokens/s in all",
    )
    table.add_row("learner", f"{p.learner_busy:.0%}", f"{p.learner_tokens:,.0f} tokens a step")
    table.add_row("tool actors", f"{p.tool_actors_busy:.0%}", f"the busiest; {p.calls:,.0f} calls a step of {p.call_seconds:.2f} s each")
    table.add_row(
        "driver", f"{p.driver_busy:.0%}", f"staleness at most {p.staleness}; about {p.quota_calls:,.0f} calls/s to the keeper of limits"
    )
    return table


def _services(p: Plan) -> Table:
    table = Table("service", "requests/step", "per second", "limit", "use", "queue, s", "failed", "too late", "USD/step")
    for s in p.services:
        limit = f"{s.limit:g}" if s.limit else "-"
        table.add_row(
            s.name, f"{s.requests:,.0f}", f"{s.per_second:.1f}", limit, f"{s.use:.0%}", f"{s.queued:.2f}", f"{s.failures:.1%}",
            f"{s.too_late:.0f}", f"{s.usd:.2f}",
        )  # fmt: skip
    return table


def _what_if(p: Plan) -> Table:
    table = Table("twice as good", "step, s", "saves", caption=f"bottleneck: {p.bottleneck or 'none saves a twentieth'}")
    for w in p.what_if:
        table.add_row(w.part, f"{w.seconds:.2f}", f"{w.saved:.0%}")
    return table


def _sizes(sizes: dict[str, Size]) -> Table:
    table = Table("asked", "runners", "ranks", "tool actors", "step, s")
    for asked, size in sizes.items():
        table.add_row(asked, f"{size.runners}", f"{size.ranks}", f"{size.tool_actors}", f"{size.seconds:.2f}")
    return table


def _money(p: Plan) -> str:
    tools, gpus = p.usd_tools * p.steps, p.usd_gpus * p.steps
    return f"{p.steps} steps: {p.hours:.1f} h; tools {p.usd_tools:,.2f} USD a step, {tools:,.0f} in all; GPUs {p.usd_gpus:,.2f} USD a step, {gpus:,.0f} in all"
