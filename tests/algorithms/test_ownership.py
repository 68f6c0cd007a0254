"""Who may write to a run folder, and what becomes of what others were writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from mmsr_ray.algorithms.checkpoints import folder_of, give_up_unfinished, whole
from mmsr_ray.algorithms.ownership import NotOwner, Ownership
from mmsr_ray.learner.durable import PARTIAL, Report, write_manifest
from mmsr_ray.learner.shards import _finish


def test_who_took_the_folder_last_owns_it(tmp_path: Path) -> None:
    first, second = Ownership(tmp_path), Ownership(tmp_path)
    first.take()
    first.check()
    second.take()
    second.check()
    with pytest.raises(NotOwner, match="started after this one"):
        first.check()
    assert [file.name for file in tmp_path.iterdir()] == ["owner"]


def test_ranks_that_were_replaced_while_they_wrote_give_nothing_its_name(tmp_path: Path) -> None:
    final = folder_of(tmp_path, 3)
    old = final.with_name(f"{final.name}.old-ranks{PARTIAL}")
    old.mkdir()
    new = final.with_name(f"{final.name}.new-ranks{PARTIAL}")
    give_up_unfinished(tmp_path)
    new.mkdir()
    write_manifest(new, {})
    report = Report({})
    _finish(report, new, final)
    assert not report.error and whole(tmp_path) == [final]

    late = Report({})
    _finish(late, old, final)  # the old ranks come to their end
    assert late.error == "No such file or directory"
    assert whole(tmp_path) == [final]
