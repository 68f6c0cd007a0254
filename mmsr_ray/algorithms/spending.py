"""What the tools of a training run did and cost, looked at once per step, and when the money ends the training.

Promise: a look has a deadline and never fails the step; what did not answer is left out of the record and said in the
log. Totals never go back (tools.measures.Totals) and lie in the run folder as tools.json, with what the next submission
needs to go on counting. `before_step` raises BudgetSpent when what is left may not pay for a step, judged by the
costliest of the recent ones; without any to judge by, training goes on until the tools themselves refuse.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmsr_ray.config import Config
from mmsr_ray.evaluation.summary import write_json
from mmsr_ray.evaluation.tools import FILE, read_tools
from mmsr_ray.tools.actor import RemoteTools
from mmsr_ray.tools.errors import BudgetSpent, ToolsError
from mmsr_ray.tools.measures import Totals, call_rows, provider_rows, saving, step_record
from mmsr_ray.tools.providers import services
from mmsr_ray.tools.purse import Account

logger = logging.getLogger(__name__)

RECENT = 10  # steps
LOOK_SECONDS = 30.0


class Spending:
    """Of one GRPO. Its I/O is the tool actors' and tools.json."""

    def __init__(self, config: Config, folder: Path) -> None:
        self._config, self._file = config, folder / FILE
        self._prices = {name: section.price for name, section in services(config.tools).items()}
        self._tools: RemoteTools | None = None
        self._account: Account | None = None
        self.recent: list[float] = []  # USD of the last steps
        found = read_tools(folder)
        self._totals = Totals(found["sums"], found["seen"]) if found else Totals()
        self._stopped = ""

    def before_step(self) -> None:
        """Raises BudgetSpent when what is left is less than a recent step has cost."""
        if self._account is None:  # else it is that of the last step's end
            self.look()
        if self._account is not None and not enough(self._account, self.recent):
            raise BudgetSpent(
                f"{self._account.left:.4f} USD are left of tools.budget_usd={self._account.budget:g}, "
                f"and a step has cost up to {max(self.recent, default=0.0):.4f}"
            )

    def after_step(self, step: int) -> dict[str, Any]:
        """The group `tools` of the step's record; empty where no actor answered."""
        news = self.look(step)
        if not news:
            return {}
        record = step_record(news, self._prices)
        self.recent = [*self.recent, record["cost_usd"]][-RECENT:]
        if self._account is not None:
            record["cost_usd_total"] = self._account.spent
        return {"tools": record}

    def stop(self, step: int) -> None:
        """The money is spent: say so in tools.json."""
        self._stopped = "budget"
        self.look(step)

    def look(self, step: int | None = None) -> dict[str, float]:
        """What is new since the last look. Writes tools.json; `step` is the number of finished steps, where it is known."""
        try:
            readings, account = asyncio.run(asyncio.wait_for(self._ask(), LOOK_SECONDS))
        except (ToolsError, TimeoutError) as error:
            logger.warning("the tools' numbers are left out: %s", error or type(error).__name__)
            return {}
        self._account = account or self._account
        news = self._totals.take(readings)
        self._write(step)
        return news

    async def _ask(self) -> tuple[dict[str, dict[str, float]], Account | None]:
        if self._tools is None:
            self._tools = RemoteTools.connect(self._config)
        await self._tools.settle()  # so that the account says what was spent, and not what was leased
        return await self._tools.readings(), await self._tools.account()

    def _write(self, step: int | None) -> None:
        before = read_tools(self._file.parent) or {}
        sums = self._totals.sums
        write_json(
            self._file,
            {
                "steps": before.get("steps", 0) if step is None else step,
                "stopped": self._stopped,
                "budget_usd": self._account.budget if self._account else self._config.tools.budget_usd,
                "spent_usd": self._account.spent if self._account else None,
                "kinds": {name: section.kind for name, section in services(self._config.tools).items()},
                "calls": call_rows(sums),
                "providers": provider_rows(sums),
                "saving": saving(sums, self._prices),
                "sums": sums,
                "seen": self._totals.seen,
            },
        )


def enough(account: Account, recent: Sequence[float]) -> bool:
    """Does what is left pay for a step as costly as the costliest recent one? Yes where they cost nothing, or none is known."""
    costliest = max(recent, default=0.0)
    return costliest == 0 or account.left >= costliest
