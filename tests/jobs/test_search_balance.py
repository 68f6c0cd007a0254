"""The stages of search balancing over stage files, the rollouts given."""

from pathlib import Path

import pytest

from jobs import search_balance
from jobs.roll_out import Candidates, RolledOut
from mmsr_ray.config import Config, load
from mmsr_ray.data.construction.candidate import Candidate, read, write
from mmsr_ray.data.construction.journal import Journal
from mmsr_ray.data.construction.mixture import LEFT_OUT
from mmsr_ray.data.schema import DataError

RIGHT = '{"correct": true, "image_searches": %d, "text_searches": 0}'


def config() -> Config:
    return load(None, ["model.path=none", "data.train=none", "data.test=none", "construction.balance.required_per_free=1"])


def rolled_out(undecided: int) -> object:
    """Stands for the rollouts: questions with an even number are right without a search, the others with one."""

    def roll_out(_: Config, candidates: Candidates, journal: Journal) -> RolledOut:
        asked = [c for c in candidates() if c.kept]
        given = asked[: len(asked) - undecided]
        journal.keep([(c.key, "[" + ", ".join([RIGHT % (int(c.key) % 2)] * 8) + "]") for c in given])
        return RolledOut(len(asked), len(asked), undecided, 2.0)

    return roll_out


def test_labels_and_mixture_account_for_every_candidate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_balance, "roll_out", rolled_out(undecided=1))
    source, labels, mixture, journal = (tmp_path / name for name in ("before.parquet", "labels.parquet", "mixture.parquet", "journal"))
    write(source, [*(Candidate(str(i)) for i in range(7)), Candidate("7").dropped("no image")])
    found = search_balance.label_stage(config(), source, labels, journal)
    assert found["candidates"] == {"kept": 6, "undecided": 1, "no image": 1}
    assert found["rollouts_per_second"] == 7 * 8 / 2
    found = search_balance.mixture_stage(config(), labels, mixture)
    assert found["needs"] == {"search_free": 3, "image_required": 3, "text_required": 0, "mix_required": 0}
    write(source, [*(Candidate(str(i)) for i in (1, 3, 5, 7)), Candidate("0"), Candidate("9")])
    search_balance.label_stage(config(), source, labels, tmp_path / "another journal")
    found = search_balance.mixture_stage(config(), labels, mixture)
    assert found["left_out"]["image_required"] == 3
    assert found["candidates"] == {"kept": 2, LEFT_OUT: 3, "undecided": 1}
    assert sum(1 for _ in read(mixture)) == 6


def test_no_set_is_made_of_what_infrastructure_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search_balance, "roll_out", rolled_out(undecided=2))
    source, labels = tmp_path / "before.parquet", tmp_path / "labels.parquet"
    write(source, [Candidate(str(i)) for i in range(4)])
    with pytest.raises(DataError, match="2 of 4 questions have too few rollouts"):
        search_balance.label_stage(config(), source, labels, tmp_path / "journal")
    assert not labels.exists()
