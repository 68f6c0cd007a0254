"""Decisions on disk: nothing is lost or overwritten, whoever else writes."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from mmsr_ray.data.construction.review.queue import CLAIM_SECONDS
from mmsr_ray.data.construction.review.store import Conflict, OtherVersion, Store
from mmsr_ray.data.construction.review.verdicts import REASONS, Decision, ReviewError, State, Verdict, Words

CONTENTS = {f"k{n}": f"c{n}" for n in range(4)}
IDS = itertools.count()


class Clock:
    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        self.now += 0.001  # so that no two decisions fall together
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock) -> Iterator[Store]:
    opened = Store(tmp_path / "review.sqlite", clock)
    opened.begin(CONTENTS, 2)
    for name in ("ann", "ben", "cem"):
        opened.add_annotator(name, f"hash of {name}")
    yield opened
    opened.close()


def decision(key: str, annotator: str, verdict: Verdict = Verdict.ACCEPT, **more: object) -> Decision:
    reason = REASONS["3"] if verdict is Verdict.REJECT else ""
    return replace(Decision(f"id{next(IDS)}", key, annotator, CONTENTS[key], verdict, reason=reason), **more)


def test_a_decision_is_there_after_opening_again(store: Store, tmp_path: Path) -> None:
    given = decision("k1", "ann", Verdict.EDIT, words=Words("Who?", "Ada", ("A.", "Ä")), note="ö", seconds=2.5)
    stored = store.save(given, 0)
    other = Store(tmp_path / "review.sqlite")
    assert other.own("k1", "ann") == stored == replace(given, version=1, at=stored.at)
    assert other.contents() == CONTENTS
    assert other.annotator("hash of ben") == "ben"
    assert other.annotator("guess") is None
    other.close()


def test_twice_sent_is_once_saved_and_an_outdated_view_is_refused(store: Store) -> None:
    first = store.save(decision("k1", "ann"), 0)
    assert store.save(replace(first, at=""), 0) == first
    with pytest.raises(Conflict, match="another window") as conflict:
        store.save(decision("k1", "ann", Verdict.REJECT), 0)
    assert conflict.value.kind == "stale"
    second = store.save(decision("k1", "ann", Verdict.REJECT), 1)
    assert (second.version, store.own("k1", "ann")) == (2, second)
    assert store.history() == [first, second]


def test_an_undo_is_a_row_more_and_gives_the_words_back_as_a_draft(store: Store) -> None:
    store.save_draft("k1", "ann", "c1", 5, {"question": "typed"})
    edited = store.save(decision("k1", "ann", Verdict.EDIT, words=Words("Who?", "Ada", ("A.", "B.")), note="n"), 0)
    assert store.draft("k1", "ann") is None
    store.save(decision("k1", "ann", Verdict.WITHDRAWN), 1)
    assert store.own("k1", "ann") is None
    assert store.last("ann") is None
    draft = store.draft("k1", "ann")
    assert draft is not None
    assert draft["body"] == {"question": "Who?", "answer": "Ada", "aliases": "A.\nB.", "note": "n"}
    assert [d.verdict for d in store.history()] == [Verdict.EDIT, Verdict.WITHDRAWN]
    assert store.history()[0] == edited
    with pytest.raises(Conflict, match="no decision of yours"):
        store.save(decision("k1", "ann", Verdict.WITHDRAWN), 2)


def test_a_draft_outlives_an_acceptance(store: Store) -> None:
    store.save_draft("k1", "ann", "c1", 5, {"question": "typed"})
    store.save(decision("k1", "ann"), 0)
    assert store.draft("k1", "ann") == {"edited": 5, "body": {"question": "typed"}}


def test_drafts_are_each_ones_own_and_never_go_back(store: Store) -> None:
    assert store.save_draft("k1", "ann", "c1", 20, {"answer": "new"})
    assert not store.save_draft("k1", "ann", "c1", 10, {"answer": "late arrival of an old one"})
    assert store.save_draft("k1", "ben", "c1", 5, {"answer": "ben's"})
    assert store.draft("k1", "ann") == {"edited": 20, "body": {"answer": "new"}}
    assert store.draft("k1", "ben") == {"edited": 5, "body": {"answer": "ben's"}}


def test_two_look_and_no_more(store: Store) -> None:
    store.save(decision("k1", "ann"), 0)
    store.save(decision("k1", "ben"), 0)
    with pytest.raises(Conflict, match="Enough others") as conflict:
        store.save(decision("k1", "cem"), 0)
    assert conflict.value.kind == "enough"
    assert [(key, state) for key, state, *_ in store.outcomes()][1] == ("k1", State.SETTLED)
    assert store.may_look("k1", "cem") == 0
    assert store.may_look("k0", "cem") == 1


def test_a_dispute_goes_to_somebody_else_once(store: Store) -> None:
    store.save(decision("k1", "ann"), 0)
    store.save(decision("k1", "ben", Verdict.REJECT), 0)
    assert [store.may_look("k1", name) for name in ("ann", "ben", "cem")] == [1, 1, 2]
    with pytest.raises(Conflict, match="no second look of yours"):
        store.save(decision("k1", "ann", look=2), 1)
    assert store.next_item("cem") == "k1"  # disputes first
    store.add_annotator("dan", None)
    assert store.next_item("dan") == "k0"  # cem is at it
    second = store.save(decision("k1", "cem", look=2), 0)
    assert {key: (state, deciding) for key, state, deciding, _ in store.outcomes()}["k1"] == (State.SETTLED, second)
    with pytest.raises(Conflict, match="no second look of yours"):
        store.save(decision("k1", "dan", look=2), 0)


def test_the_queue_gives_each_candidate_to_two_and_what_was_left_again(store: Store, clock: Clock) -> None:
    assert [store.next_item("ann"), store.next_item("ben")] == ["k0", "k0"]
    assert store.next_item("cem") == "k1"  # two have k0 open
    assert store.next_item("ann") == "k0"  # not decided yet
    assert store.next_item("ann", after="k0") == "k1"
    store.save(decision("k1", "ann"), 0)
    assert [store.next_item("ann", after="k1"), store.next_item("ann", after="k2"), store.next_item("ann", after="k3")] == [
        "k2",
        "k3",
        "k0",
    ]
    assert store.path_of("ann") == ["k0", "k1", "k2", "k3"]
    clock.now += CLAIM_SECONDS  # all went home, and nobody has decided k0
    assert store.next_item("cem", after="k1") == "k0"


def test_nothing_left(store: Store) -> None:
    for key in CONTENTS:
        store.save(decision(key, "ann"), 0)
    assert store.next_item("ann") is None
    assert store.decided("ann") == 4


def test_another_version_is_refused_with_the_difference_and_merged_where_it_is_the_same(store: Store) -> None:
    kept, lost, gone = (store.save(decision(key, "ann"), 0) for key in ("k0", "k1", "k2"))
    newer = {"k0": "c0", "k1": "changed", "k3": "c3", "k4": "c4"}
    with pytest.raises(OtherVersion, match="1 of its candidates are not here, 1 have another content here, 1 are new here"):
        store.begin(newer, 2)
    assert store.contents() == CONTENTS  # nothing has happened
    store.begin(newer, 2, merge=True)
    assert {key: given for key, *_, given in store.outcomes()} == {"k0": [kept], "k1": [], "k3": [], "k4": []}
    assert set(store.history()) == {kept, lost, gone}
    with pytest.raises(Conflict, match="replaced") as conflict:
        store.save(decision("k1", "ben"), 0)
    assert conflict.value.kind == "replaced"
    again = store.save(decision("k1", "ann", content="changed"), 1)
    assert store.current("k1") == [again]
    store.begin(CONTENTS, 2, merge=True)  # and back
    assert store.own("k2", "ann") == gone


def test_merging_decisions_takes_newer_ones_and_keeps_what_is_here(store: Store) -> None:
    mine = store.save(decision("k0", "ann"), 0)
    theirs = [
        mine,
        decision("k0", "ann", at="2001-01-01T00:00:00.000+00:00", version=1),
        decision("k0", "ann", Verdict.REJECT, at="2099-01-01T00:00:00.000+00:00", version=1),
        decision("k1", "eve", at="2026-01-01T00:00:00.000+00:00", version=1),
    ]
    merged = store.merge(theirs)
    assert (merged.added, merged.known, merged.older, merged.other_content) == (2, 1, 1, 0)
    own = store.own("k0", "ann")
    assert own is not None
    assert (own.verdict, own.version) == (Verdict.REJECT, 2)
    assert "eve" in store.annotators()
    foreign = [decision("k2", "eve", at="2026"), decision("k3", "eve", at="2026", content="other"), replace(theirs[3], key="k9", id="x")]
    with pytest.raises(OtherVersion, match="1 of its candidates are not here, 1 have another content"):
        store.merge(foreign)
    assert store.own("k2", "eve") is None
    assert store.merge(foreign, partly=True).other_content == 2
    assert store.own("k2", "eve") is not None


def test_many_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path, contents = tmp_path / "review.sqlite", {f"k{n}": f"c{n}" for n in range(12)}
    opened = Store(path)
    opened.begin(contents, 2)
    saved: list[Decision] = []

    def work(name: str) -> None:
        mine = Store(path)
        while (key := mine.next_item(name)) is not None:
            saved.append(mine.save(Decision(f"{name}{key}", key, name, contents[key], Verdict.ACCEPT), 0))
        mine.close()

    threads = [threading.Thread(target=work, args=(name,)) for name in ("ann", "ben", "cem")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(d.id for d in opened.history()) == sorted(d.id for d in saved)
    assert Counter(d.key for d in opened.history()) == dict.fromkeys(contents, 2)
    opened.close()


KILLED = """
import sys
from pathlib import Path
from mmsr_ray.data.construction.review.store import Store
from mmsr_ray.data.construction.review.verdicts import Decision, Verdict
store = Store(Path(sys.argv[1]))
store.begin({f"k{n}": "c" for n in range(10_000)}, 2)
for n in range(10_000):
    store.save(Decision(f"id{n}", f"k{n}", "ann", "c", Verdict.ACCEPT), 0)
    sys.stdout.write(f"k{n}\\n")
    sys.stdout.flush()
"""


def test_what_was_saved_outlives_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "review.sqlite"
    with subprocess.Popen([sys.executable, "-c", KILLED, str(path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(25)]
        os.kill(process.pid, signal.SIGKILL)
        told += process.stdout.read().split()
    store = Store(path)
    assert set(told) <= {d.key for d in store.history()}
    assert len(told) >= 25
    store.close()


def test_what_is_no_review_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"something else, long enough to be looked at as a database" * 9)
    with pytest.raises(ReviewError, match="it is no review file"):
        Store(tmp_path / "x")
