"""What questions about Atlas need in truth, also those that somebody else worded: a check of search balancing.

Promise: pure. Only the concept and the words of the question are looked at, never a label.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from mmsr_ray.atlas.words import FACTS
from mmsr_ray.atlas.world import World, need_of
from mmsr_ray.types import Need


def true_need(world: World, concept: str, question: str) -> Need | None:
    """Of a question about the entity of this name; None where there is none, or the question asks for several facts."""
    entity = world.by_name.get(concept)
    words = set(re.findall(r"[a-z]+", question.lower()))
    facts = [fact for fact in FACTS if fact in words]
    if entity is None or len(facts) > 1:
        return None
    return need_of(entity, facts[0] if facts else "name")


def label_accuracy(pairs: Iterable[tuple[Need, Need]]) -> dict[str, Any]:
    """From (label, truth): `balance_label_accuracy` in [0, 1], None without pairs; `balance_labels`, truth -> label -> count; and by need
    `balance_precision` (right among so labelled) and `balance_recall` (right among so in truth).
    """
    counts = Counter(pairs)
    total = counts.total()
    right = {need: counts[need, need] for need in Need}
    labelled = {need: sum(counts[need, truth] for truth in Need) for need in Need}
    true = {need: sum(counts[label, need] for label in Need) for need in Need}
    return {
        "balance_label_accuracy": sum(right.values()) / total if total else None,
        "balance_labels": {
            truth.value: {label.value: counts[label, truth] for label in Need if counts[label, truth]} for truth in Need if true[truth]
        },
        "balance_precision": {need.value: right[need] / labelled[need] for need in Need if labelled[need]},
        "balance_recall": {need.value: right[need] / true[need] for need in Need if true[need]},
    }
