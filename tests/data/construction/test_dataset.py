"""A built set on disk: what trains on FVQA reads it back, nobody's credit is lost, and the card says what is there and no more."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
from huggingface_hub import DatasetCard
from PIL import Image

from mmsr_ray.config import DataConfig
from mmsr_ray.data.construction.candidate import Candidate
from mmsr_ray.data.construction.card import About
from mmsr_ray.data.construction.charts import TITLES
from mmsr_ray.data.construction.dataset import PROVENANCE, write_dataset
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.construction.statistics import OTHERS, PRIVATE, Statistics, counts_of, most_frequent
from mmsr_ray.data.reader import read_samples
from mmsr_ray.types import Need

NEEDS = ("search_free", "image_required", "text_required", "mix_required")
CONFIG = DataConfig(train="", test="")


def picture(shade: int) -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (32, 32), (shade, 0, 0)).save(out, format="PNG")
    return out.getvalue()


def candidate(number: int, **other: str) -> Candidate:
    seen = [{"correct": i < 6, "image_searches": int(number % 4 in (1, 3)), "text_searches": int(number % 4 in (2, 3))} for i in range(8)]
    made = Candidate(
        key=f"{number:032x}",
        concept=f"concept {number}",
        image=picture(number),
        page_url=f"https://site{number % 30}.example/page",
        licence="CC BY-SA 4.0",
        question="What is this place called?",
        answer=f"Place {number}",
        aliases=(f"the place {number}",),
        category=("Place(s)", "Nature")[number % 2],
        need=NEEDS[number % 4],
        attempts=json.dumps(seen),
    )
    return replace(made, **other)  # type: ignore[arg-type]


def about() -> About:
    construction = ConstructionConfig(concepts="/home/me/secret/concepts.txt", test_sets=["/home/me/secret/test.parquet"])
    return About(
        "places", construction, title="Places", licence="cc-by-sa-4.0", stages={"questions": {"kept": 72, "answer | not in page": 8}}
    )


def test_what_is_written_reads_back_as_fvqa(tmp_path: Path) -> None:
    train = [*(candidate(i) for i in range(70)), candidate(99).dropped("no image")]
    found = write_dataset(tmp_path, {"train": train, "test": [candidate(i) for i in range(200, 208)]}, about())
    assert {split: s.questions for split, s in found.items()} == {"train": 70, "test": 8}
    rows = read_samples(str(tmp_path / "train.parquet"), CONFIG)
    assert [row.uid for row in rows] == [c.key for c in train if c.kept]
    first = rows[1]
    assert (first.question, first.answers, first.source) == (
        "What is this place called?",
        ("Place 1", "the place 1"),
        "mmsearch_r1/places_train",
    )
    assert (first.need, first.category, first.image) == (Need.IMAGE, "search_required", picture(1))
    assert {row.category for row in rows if row.need is Need.SEARCH_FREE} == {"search_free"}
    credit = pq.read_table(tmp_path / PROVENANCE).to_pylist()
    assert [row["data_id"] for row in credit] == [row.uid for row in rows] + [f"{i:032x}" for i in range(200, 208)]
    assert (credit[1]["licence"], credit[1]["page_url"], credit[1]["taxonomy"]) == ("CC BY-SA 4.0", "https://site1.example/page", "Nature")
    assert credit[1]["confidence"] == 6 / 8
    assert not list(tmp_path.glob("*.partial"))


def test_the_card_is_one_the_hub_reads_and_tells_no_paths(tmp_path: Path) -> None:
    hostile = candidate(3, page_url="", source="<script>alert(1)</script> | [x](http://evil)\n# head")
    write_dataset(tmp_path, {"train": [candidate(1), candidate(2), hostile], "test": []}, about())
    assert not (tmp_path / "test.parquet").exists()
    loaded = DatasetCard.load(tmp_path / "README.md")
    header = loaded.data.to_dict()
    assert (header["license"], header["size_categories"], header["pretty_name"]) == ("cc-by-sa-4.0", ["n<1K"], "Places")
    assert header["configs"][0]["data_files"] == [{"split": "train", "path": "train.parquet"}]
    text = loaded.text
    for said in ("| image_required | 1 |", "| Place(s) | 1 |", "balance.rollouts | 8 |", "answer \\| not in page: 8", "site1.example"):
        assert said in text
    assert "secret" not in text
    assert str(tmp_path) not in text
    assert "<script>" not in text
    assert "\n# head" not in text
    for title in TITLES.values():
        address = text.split(f"![{title}](")[1].split(")")[0]
        with Image.open(tmp_path / address) as figure:
            assert figure.width > 600


def test_an_empty_set_is_a_card_without_files(tmp_path: Path) -> None:
    assert write_dataset(tmp_path, {"train": []}, replace(about(), licence="")) == {}
    assert "Not chosen yet" in (tmp_path / "README.md").read_text()


def test_rare_values_are_summed_up() -> None:
    one, other = Statistics(), Statistics()
    for number in range(60):
        (one if number % 3 else other).add(candidate(number))
    names = most_frequent([one.source, other.source], 4)
    assert names[-1] == OTHERS
    assert len(names) == 5
    assert sum(counts_of(names, one.source)) == one.questions == 40


def test_addresses_that_nobody_else_reaches_are_not_told() -> None:
    statistics = Statistics()
    for page, licence in (
        ("http://127.0.0.1:80/a", "http://10.0.0.5/l"),
        ("http://localhost/a", "CC"),
        ("http://8.8.8.8/a", "http://[odd"),
    ):
        statistics.add(Candidate("k", page_url=page, licence=licence))
    assert statistics.source == {PRIVATE: 2, "8.8.8.8": 1}
    assert statistics.licence == {PRIVATE: 1, "CC": 1, "http://[odd": 1}
