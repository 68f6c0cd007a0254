"""Where decisions live: one SQLite file beside the stage files (WAL; not on a network file system).

Promise: what a method returned from is on the disk, whatever is killed or loses power afterwards. Decisions are only ever added;
an undo is a further row. Nobody's decision touches anybody else's, and one made against an outdated view is refused (`Conflict`),
never merged silently. A decision counts only for the content it was made about. At most `reviewers` people take a first look.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from importlib.resources import files
from pathlib import Path
from typing import Any

from mmsr_ray.data.construction.review import queue
from mmsr_ray.data.construction.review.stage import Difference, difference
from mmsr_ray.data.construction.review.verdicts import Decision, ReviewError, State, Verdict, Words, settle
from mmsr_ray.transactions import transaction

FILE = "review.sqlite"
FORMAT = "1"
BUSY_SECONDS = 5.0  # for another process's write


class Conflict(ReviewError):
    """A decision that cannot be saved as it was meant. `kind`: stale | replaced | enough | settled | unknown."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind


class OtherVersion(ReviewError):
    """Decisions about another version of the candidates."""

    def __init__(self, what: str, found: Difference, remedy: str) -> None:
        super().__init__(f"{what} is about another version of the candidates: {found}. {remedy}")
        self.difference = found


@dataclass(frozen=True, slots=True)
class Merged:
    """What became of imported decisions."""

    added: int = 0
    known: int = 0  # the same decision was here
    older: int = 0  # the annotator has decided again since
    other_content: int = 0  # about candidates that are not here or differ

    def __str__(self) -> str:
        return f"{self.added} added, {self.known} known, {self.older} older than what is here, {self.other_content} about other candidates"


class Store:
    """One process's hold on the file. One thread at a time. Times are UTC."""

    def __init__(self, path: Path, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_SECONDS, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("pragma journal_mode = wal")
            self._db.execute("pragma synchronous = full")  # hours of people's work: also a power cut loses none
            self._db.executescript((files("mmsr_ray.data.construction.review") / "tables.sql").read_text())
        except sqlite3.DatabaseError as error:
            raise ReviewError(f"cannot open {path} ({error}): it is no review file, or its folder is not writable") from error
        if self._fact("format", FORMAT) != FORMAT:
            raise ReviewError(f"{path} was written by another version of this software: export its decisions there and import them here")

    def close(self) -> None:
        self._db.close()

    # ------------------------------------------------------------------------------------------------ candidates and people

    def begin(self, contents: Mapping[str, str], reviewers: int = 0, *, merge: bool = False) -> None:
        """Review `contents` (key -> content, in order), each by `reviewers` people (0: as before, at first 2). What is there already
        goes on.

        With another version of the candidates raises OtherVersion, unless `merge`: then decisions stay in force where key and
        content are the same, and are kept but do not count elsewhere.
        """
        if reviewers < 0:
            raise ReviewError("a candidate needs at least 1 reviewer")
        with transaction(self._db):
            here = self.contents()
            if here != dict(contents):
                found = difference(here, contents)
                if here and found and not merge:
                    raise OtherVersion(
                        "the review file",
                        found,
                        "Give --merge to keep the decisions whose candidates are the same, or name another --store",
                    )
                self._db.execute("delete from items")
                rows = [(key, position, content) for position, (key, content) in enumerate(contents.items())]
                self._db.executemany("insert into items (key, position, content) values (?, ?, ?)", rows)
                queue.count(self._db)
            if reviewers:
                self._db.execute("insert or replace into facts values ('reviewers', ?)", (str(reviewers),))

    @property
    def reviewers(self) -> int:
        """First looks per candidate."""
        return int(self._fact("reviewers", "2"))

    def contents(self) -> dict[str, str]:
        """Key -> content, in the order of review."""
        return {row["key"]: row["content"] for row in self._db.execute("select key, content from items order by position")}

    def add_annotator(self, name: str, token_hash: str | None) -> None:
        """A new token replaces the old one; without a token, somebody of an imported file."""
        with transaction(self._db):
            self._db.execute("insert or ignore into annotators values (?, null)", (name,))
            if token_hash is not None:
                self._db.execute("update annotators set token = ? where name = ?", (token_hash, name))

    def annotator(self, token_hash: str) -> str | None:
        row = self._db.execute("select name from annotators where token = ?", (token_hash,)).fetchone()
        return row["name"] if row else None

    def annotators(self) -> list[str]:
        return [row["name"] for row in self._db.execute("select name from annotators order by name")]

    # ------------------------------------------------------------------------------------------------ decisions

    def save(self, decision: Decision, base: int) -> Decision:
        """Add a decision by somebody who saw their own version `base` (0: none yet); returns it as stored. Saving it twice is saving
        it once. An edit ends its draft, and undoing the edit makes it a draft again. Raises Conflict."""
        with transaction(self._db):
            known = self._select("select * from decisions where id = ?", (decision.id,))
            if known:
                return known[0]
            self._check(decision, base)
            stored = replace(decision, version=base + 1, at=self._after(decision.key, decision.annotator))
            self._insert(stored)
            queue.count(self._db, decision.key)
            mine = (decision.key, decision.annotator)
            if decision.verdict is Verdict.WITHDRAWN:
                self._draft_again(*mine, base)
            elif decision.verdict is Verdict.EDIT:
                self._db.execute("delete from drafts where key = ? and annotator = ?", mine)
            queue.claim(self._db, *mine, self._clock())
            return stored

    def _check(self, d: Decision, base: int) -> None:
        item = self._db.execute("select content from items where key = ?", (d.key,)).fetchone()
        if item is None or item["content"] != d.content:
            raise Conflict(
                "replaced", "This candidate was replaced while you had it open. Your words are kept as a draft: load the page again."
            )
        if self.version(d.key, d.annotator) != base:
            raise Conflict(
                "stale", "You decided this in another window. Load the page again to see it; your words here are kept as a draft."
            )
        if d.verdict is Verdict.WITHDRAWN:
            if self.own(d.key, d.annotator) is None:
                raise Conflict("stale", "There is no decision of yours to undo.")
            return
        others = [other for other in self.current(d.key) if other.annotator != d.annotator]
        state, _ = settle(others, self.reviewers)
        if d.look == 1 and sum(other.look == 1 for other in others) >= self.reviewers:
            raise Conflict("enough", "Enough others have decided this meanwhile. Your words are kept as a draft: load the page again.")
        if d.look == 2 and (state is not State.DISPUTED or self._looked(d.key, d.annotator)):
            raise Conflict("settled", "This needs no second look of yours any more. Your words are kept as a draft: load the page again.")

    def _looked(self, key: str, annotator: str) -> bool:
        """Whether they ever took a first look; a second look is somebody else's."""
        return queue.looked(self._db, key, annotator)

    def version(self, key: str, annotator: str) -> int:
        """Of their newest decision, withdrawals included; 0 where there is none."""
        return self._db.execute(
            "select coalesce(max(version), 0) from decisions where key = ? and annotator = ?", (key, annotator)
        ).fetchone()[0]

    def own(self, key: str, annotator: str) -> Decision | None:
        """What they say about a candidate as it is now."""
        found = self._select("select * from current where key = ? and annotator = ?", (key, annotator))
        return found[0] if found else None

    def current(self, key: str) -> list[Decision]:
        return self._select("select * from current where key = ? order by at", (key,))

    def last(self, annotator: str) -> Decision | None:
        """Their newest decision in force."""
        found = self._select("select * from current where annotator = ? order by at desc, rowid desc limit 1", (annotator,))
        return found[0] if found else None

    def decided(self, annotator: str) -> int:
        """Candidates about which they have a decision in force."""
        return self._db.execute("select count(*) from current where annotator = ?", (annotator,)).fetchone()[0]

    def outcomes(self) -> Iterator[tuple[str, State, Decision | None, list[Decision]]]:
        """(key, state, deciding decision, current decisions) of every candidate, in order."""
        by_key: dict[str, list[Decision]] = {}
        for decision in self._select("select * from current order by at", ()):
            by_key.setdefault(decision.key, []).append(decision)
        reviewers = self.reviewers
        for key in self.contents():
            decisions = by_key.get(key, [])
            yield key, *settle(decisions, reviewers), decisions

    def history(self) -> list[Decision]:
        """Every decision ever, in the order of candidates, annotators and versions."""
        return self._select(
            "select d.* from decisions d left join items i on i.key = d.key order by i.position, d.key, annotator, version", ()
        )

    def merge(self, decisions: Iterable[Decision], *, partly: bool = False, what: str = "the file") -> Merged:
        """Add decisions of another file, all or none. A newer one of the same annotator about the same candidate takes effect, an
        older one does not; none replaces another annotator's. Decisions about candidates that are not here, or differ, raise
        OtherVersion, or are left out when `partly`."""
        given = sorted(decisions, key=lambda d: (d.key, d.annotator, d.at, d.version))
        here = self.contents()
        there = {d.key: d.content for d in given}
        fitting = [d for d in given if here.get(d.key) == d.content]
        if len(fitting) < len(given) and not partly:
            found = replace(difference(there, here), new=0)
            raise OtherVersion(what, found, "Give --merge to take the decisions whose candidates are the same")
        counts = {"added": 0, "known": 0, "older": 0}
        with transaction(self._db):
            for decision in fitting:
                counts[self._merge_one(decision)] += 1
            queue.count(self._db)
        return Merged(**counts, other_content=len(given) - len(fitting))

    def _merge_one(self, decision: Decision) -> str:
        mine = (decision.key, decision.annotator)
        newest = self._select("select * from decisions where key = ? and annotator = ? order by version desc limit 1", mine)
        if self._db.execute("select 1 from decisions where id = ?", (decision.id,)).fetchone():
            return "known"
        if newest and newest[0].at >= decision.at:
            return "older"
        self._db.execute("insert or ignore into annotators values (?, null)", (decision.annotator,))
        self._insert(replace(decision, version=newest[0].version + 1 if newest else 1))
        return "added"

    # ------------------------------------------------------------------------------------------------ drafts and the queue

    def save_draft(self, key: str, annotator: str, content: str, edited: int, body: Mapping[str, Any]) -> bool:
        """Keep what is being typed, `edited` in milliseconds of the browser's clock; False where a later one is here."""
        with transaction(self._db):
            changed = self._db.execute(
                "insert into drafts values (?, ?, ?, ?, ?) on conflict (key, annotator) do update set content = excluded.content,"
                " edited = excluded.edited, body = excluded.body where excluded.edited >= drafts.edited",
                (key, annotator, content, edited, json.dumps(dict(body))),
            ).rowcount
            queue.claim(self._db, key, annotator, self._clock())
        return bool(changed)

    def draft(self, key: str, annotator: str) -> dict[str, Any] | None:
        """{"edited", "body"} of what they typed and have not decided, whatever version of the candidate it was about."""
        row = self._db.execute("select edited, body from drafts where key = ? and annotator = ?", (key, annotator)).fetchone()
        return {"edited": row["edited"], "body": json.loads(row["body"])} if row else None

    def _draft_again(self, key: str, annotator: str, version: int) -> None:
        undone = self._select("select * from decisions where key = ? and annotator = ? and version = ?", (key, annotator, version))[0]
        if undone.verdict is Verdict.EDIT:
            body = {"question": undone.words.question, "answer": undone.words.answer, "aliases": "\n".join(undone.words.aliases)}
            self._db.execute(
                "insert or replace into drafts values (?, ?, ?, ?, ?)",
                (key, annotator, undone.content, int(self._clock() * 1000), json.dumps({**body, "note": undone.note})),
            )

    def next_item(self, annotator: str, after: str | None = None) -> str | None:
        """The candidate to look at next, which is theirs for a while; None when nothing is left for them."""
        with transaction(self._db):
            return queue.next_item(self._db, annotator, self.reviewers, self._clock(), after)

    def open_item(self, key: str, annotator: str) -> None:
        with transaction(self._db):
            queue.claim(self._db, key, annotator, self._clock())

    def path_of(self, annotator: str) -> list[str]:
        """The candidates they have seen, in that order."""
        return queue.path_of(self._db, annotator)

    def may_look(self, key: str, annotator: str) -> int:
        """Which look they may take at a candidate, or have taken: 1, 2, or 0 for none."""
        own = self.own(key, annotator)
        return own.look if own else queue.may_look(self._db, key, annotator, self.reviewers)

    # ------------------------------------------------------------------------------------------------ rows

    def _insert(self, d: Decision) -> None:
        words = (d.words.question, d.words.answer, json.dumps(d.words.aliases, ensure_ascii=False))
        values = (
            d.id,
            d.key,
            d.annotator,
            d.content,
            d.version,
            d.look,
            d.verdict.value,
            *words,
            d.reason,
            d.note,
            d.stance,
            d.seconds,
            d.at,
        )
        self._db.execute(f"insert into decisions values ({', '.join('?' * len(values))})", values)

    def _select(self, query: str, values: Sequence[Any]) -> list[Decision]:
        return [_decision(row) for row in self._db.execute(query, values)]

    def _fact(self, name: str, default: str) -> str:
        self._db.execute("insert or ignore into facts values (?, ?)", (name, default))
        return self._db.execute("select value from facts where name = ?", (name,)).fetchone()["value"]

    def _after(self, key: str, annotator: str) -> str:
        """Now, but later than their newest decision about the candidate: `merge` tells by the time which of two is the newer."""
        now = datetime.fromtimestamp(self._clock(), UTC)
        last = self._db.execute("select max(at) from decisions where key = ? and annotator = ?", (key, annotator)).fetchone()[0]
        if last is not None:
            now = max(now, datetime.fromisoformat(last) + timedelta(milliseconds=1))
        return now.isoformat(timespec="milliseconds")


def _decision(row: sqlite3.Row) -> Decision:
    words = Words(row["question"], row["answer"], tuple(json.loads(row["aliases"])))
    names = ("id", "key", "annotator", "content", "reason", "note", "look", "version", "seconds", "at")
    return Decision(**{name: row[name] for name in names}, verdict=Verdict(row["verdict"]), words=words)
