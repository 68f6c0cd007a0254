"""tools.json of a run folder: what its searches did and cost, over all submissions. Written by algorithms.spending."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

FILE = "tools.json"


def read_tools(folder: Path) -> dict[str, Any] | None:
    """None where no training step has looked at the tools yet."""
    file = folder / FILE
    return json.loads(file.read_text()) if file.is_file() else None
