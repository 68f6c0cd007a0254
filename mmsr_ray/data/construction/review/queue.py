"""Who looks at what next. SQL over the tables of the store, inside the store's transactions.

Promise: no more people get a candidate for a first look than it needs, as long as they come back within CLAIM_SECONDS; a dispute
goes to one person at a time, who gave no first look. Whoever leaves something undecided comes back to it.
"""

from __future__ import annotations

import sqlite3

CLAIM_SECONDS = 1800.0  # a candidate stays somebody's so long after they last touched it

# Others who have the candidate open and have not decided it.
_OTHERS_AT_IT = (
    "(select count(*) from claims o where o.key = s.key and o.annotator <> :me and o.at > :since"
    " and not exists (select 1 from current c where c.key = o.key and c.annotator = o.annotator))"
)
_LOOKED = (
    "exists (select 1 from decisions d join items i on i.key = d.key and i.content = d.content"
    " where d.key = s.key and d.annotator = :me and d.look = 1 and d.verdict <> 'withdrawn')"
)
_UNDECIDED = "not exists (select 1 from current c where c.key = s.key and c.annotator = :me)"
_DISPUTE = f"(s.looks >= :reviewers and s.stances > 1 and s.second_looks = 0 and not {_LOOKED})"
_NEW = (
    f"select s.key from items s where (s.looks < :reviewers and s.looks + {_OTHERS_AT_IT} < :reviewers or {_DISPUTE} and {_OTHERS_AT_IT} = 0)"
    f" and {_UNDECIDED} and not exists (select 1 from claims m where m.key = s.key and m.annotator = :me)"
    " order by s.looks >= :reviewers desc, s.position limit 1"
)
_LEFT = (
    f"select s.key, m.number from claims m join items s on s.key = m.key where m.annotator = :me and {_UNDECIDED}"
    f" and ({_DISPUTE} or s.looks < :reviewers) order by m.number"
)


def next_item(db: sqlite3.Connection, me: str, reviewers: int, now: float, after: str | None) -> str | None:
    """What was left undecided after `after`, then something new, then what was left before; claimed."""
    values = {"me": me, "reviewers": reviewers, "since": now - CLAIM_SECONDS}
    left = [(row["number"], row["key"]) for row in db.execute(_LEFT, values)]
    number = db.execute("select number from claims where annotator = ? and key = ?", (me, after)).fetchone() if after else None
    following = [key for at, key in left if at > (number["number"] if number else 0)]
    new = None if following else db.execute(_NEW, values).fetchone()
    key = following[0] if following else new["key"] if new else left[0][1] if left else None
    if key is not None:
        claim(db, key, me, now)
    return key


def claim(db: sqlite3.Connection, key: str, me: str, now: float) -> None:
    """Make it theirs, or theirs for longer; a key that is not under review is left alone."""
    db.execute(
        "insert into claims (key, annotator, at) select key, ?, ? from items where key = ? on conflict (key, annotator) do update set at = excluded.at",
        (me, now, key),
    )


def count(db: sqlite3.Connection, key: str | None = None) -> None:
    """Write anew how many looks a candidate has, or every one."""
    db.execute(
        "update items set (looks, stances, second_looks) = (select count(case when look = 1 then 1 end),"
        " count(distinct case when look = 1 then stance end), count(case when look = 2 then 1 end)"
        " from current c where c.key = items.key)" + ("" if key is None else " where key = ?"),
        () if key is None else (key,),
    )


def path_of(db: sqlite3.Connection, me: str) -> list[str]:
    query = "select c.key from claims c join items i on i.key = c.key where annotator = ? order by number"
    return [row["key"] for row in db.execute(query, (me,))]


def may_look(db: sqlite3.Connection, key: str, me: str, reviewers: int) -> int:
    """1, 2, or 0 for none, of somebody who has not decided."""
    query = f"select s.looks, {_DISPUTE} as dispute from items s where s.key = :key"
    row = db.execute(query, {"key": key, "me": me, "reviewers": reviewers}).fetchone()
    if row is None:
        return 0
    return 1 if row["looks"] < reviewers else 2 if row["dispute"] else 0


def looked(db: sqlite3.Connection, key: str, me: str) -> bool:
    """Whether they ever took a first look at the candidate as it is now."""
    return bool(db.execute(f"select {_LOOKED} as looked from items s where s.key = :key", {"key": key, "me": me}).fetchone()["looked"])
