"""Whether bundles fit on nodes, against trying every assignment; and what is said where they do not."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmsr_ray.algorithms.placement import Resources, copies, fit

RUNNER, RANK = {"CPU": 4.0, "GPU": 1.0}, {"CPU": 2.0, "GPU": 0.5}


def test_what_fits_says_so() -> None:
    room = fit([{"CPU": 0.1}, RUNNER, RUNNER, RANK], [{"CPU": 8, "GPU": 2, "memory": 1e9}, {"CPU": 3, "GPU": 1}])
    assert room.enough
    assert str(room).endswith("missing: nothing")
    assert fit([], []).enough


def test_what_is_missing_is_told_by_resource() -> None:
    room = fit([{"CPU": 0.1}, *[RUNNER] * 4, *[RANK] * 2], [{"CPU": 16, "GPU": 2}])
    assert not room.enough
    assert str(room) == (
        "asked: CPU 20.1, GPU 5 in bundles of 1 x CPU 0.1, 4 x CPU 4, GPU 1, 2 x CPU 2, GPU 0.5; "
        "available: CPU 16, GPU 2; missing: CPU 4.1, GPU 3"
    )


def test_sums_that_suffice_on_the_wrong_nodes_are_told_by_bundle() -> None:
    room = fit([{"CPU": 3.0}] * 3, [{"CPU": 5}, {"CPU": 5}])
    assert not room.enough
    assert str(room).endswith("available: CPU 10; missing: a node with room for 1 x CPU 3, though the sums suffice")
    room = fit([RUNNER], [{"CPU": 8}, {"GPU": 1}])
    assert str(room).endswith("missing: a node with room for 1 x CPU 4, GPU 1, though the sums suffice")


def test_a_greedy_placement_would_fail_where_there_is_one() -> None:
    """The big one first onto the first node, as a packing does, leaves no node for the three small ones."""
    assert fit([{"CPU": 4.0}, *[{"CPU": 3.0}] * 4], [{"CPU": 10}, {"CPU": 6}]).enough
    assert fit([{"CPU": 0.1}] * 10, [{"CPU": 1}]).enough, "ten tenths are one"


def test_no_node_at_all() -> None:
    assert str(fit([{"CPU": 1.0}], [])).endswith("available: CPU 0; missing: CPU 1")


def test_a_large_cluster_takes_no_time() -> None:
    bundles = [{"CPU": 0.1}, *[{"CPU": 8.0, "GPU": 1.0}] * 100, *[{"CPU": 4.0, "GPU": 1.0}] * 60]
    nodes = [{"CPU": 64.0, "GPU": 8.0}] * 20
    assert fit(bundles, nodes).enough
    assert not fit(bundles, nodes[:19]).enough


def by_trying(bundles: list[Resources], nodes: list[Resources]) -> bool:
    for assignment in product(range(len(nodes)), repeat=len(bundles)):
        left = [dict(node) for node in nodes]
        for bundle, node in zip(bundles, assignment, strict=True):
            for name, amount in bundle.items():
                left[node][name] = left[node].get(name, 0) - amount
        if all(value >= 0 for node in left for value in node.values()):
            return True
    return False


AMOUNTS = st.fixed_dictionaries({"CPU": st.integers(1, 4), "GPU": st.integers(0, 2)})


@settings(max_examples=200, deadline=None)
@given(st.lists(AMOUNTS, min_size=1, max_size=3), st.lists(st.integers(1, 2), min_size=3, max_size=3), st.lists(AMOUNTS, max_size=3))
def test_the_verdict_is_that_of_trying_every_assignment(kinds: list[Resources], counts: list[int], nodes: list[Resources]) -> None:
    bundles = [kind for kind, count in zip(kinds, counts, strict=False) for _ in range(count)]
    room = fit(bundles, nodes)
    assert room.enough == by_trying(bundles, nodes)
    if room.short:
        assert not room.enough


@pytest.mark.parametrize("nodes", [[{"CPU": 3}], [{"CPU": 2}, {"CPU": 2}]])
def test_as_many_as_possible_are_counted(nodes: list[Resources]) -> None:
    room = fit([{"CPU": 2.0}] * 3, nodes)
    assert sum(room.placed) == sum(int(node["CPU"] // 2) for node in nodes)


def test_how_many_equal_bundles_fit_node_by_node() -> None:
    nodes = [{"CPU": 4.0, "GPU": 1.0}, {"CPU": 3.9}, {"GPU": 2.0, "CPU": 0.3}]
    assert copies({"CPU": 2.0}, nodes) == 3
    assert copies({"CPU": 0.1, "GPU": 1.0}, nodes) == 3
    assert copies({"GPU": 4.0}, nodes) == 0
