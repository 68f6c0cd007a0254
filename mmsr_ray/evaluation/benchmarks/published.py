"""The five benchmarks of the paper (spec §6.1): where they lie, how large they are, what their columns are called.

What could be checked, and how (the sets themselves could not be opened where this was written, so every size is asserted when
one is loaded):

- FVQA-test: columns from a released sample (`data/schema.py`) and from public code that reads it; file name, revision and licence
  from its hub page; 1,800 from the paper.
- InfoSeek: columns from public code that converts the subset's file, `mmsearch_r1_infoseek_sub_2k.parquet` of the MMSearch-R1
  repository (Git LFS, not on the hub): the FVQA schema and `image_id`. Whether its expected answers are filled in was not seen;
  where they are not, the rows are refused as "empty answer". Its licence was not seen.
- MMSearch: columns from lmms-eval's task and the set's own evaluation code; file name from its hub page, which names no licence;
  300 rows, of which 171 have a picture, from the paper. That other accepted answers are a list was seen in readers only.
- SimpleVQA: columns, pictures as base64 and languages EN and CN from public readers and a shown row; file name and licence from
  its hub page; 2,025 rows, of which 1,013 are English, from the paper. A public copy dropped one row of all whose picture it could
  not decode; if that is an English one, 1,012 remain.
- LiveVQA: `qa.json` with sample_id, query, query_image and gt_answer, pictures in `image/`, from public code that reads it; the
  licence from the card of its later version. 3,602 is the paper's; other groups find 2,384.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from mmsr_ray.evaluation.benchmarks.layouts import FVQA, Layout

HUB = "https://huggingface.co/datasets/"


@dataclass(frozen=True)
class Published:
    """`size`: questions that the paper asks. `files`: patterns of what is needed, the table first. `get`: how, where no hub has it."""

    name: str
    size: int
    licence: str
    source: str
    files: tuple[str, ...]
    layouts: tuple[Layout, ...] = field(default=(FVQA,))
    repository: str = ""  # on the hub; "" where it is not there
    revision: str | None = None
    get: str = ""


_ALL = (
    Published(
        "fvqa_test",
        1_800,
        "Apache-2.0",
        HUB + "lmms-lab/FVQA",
        ("fvqa_test.parquet",),
        repository="lmms-lab/FVQA",
        revision="bb4a4ff4c9c3fd0382d11f5d7fccd66d0b8428b5",
    ),
    Published(
        "infoseek",
        2_000,
        "not stated with the subset; InfoSeek's own terms hold",
        "https://github.com/EvolvingLMMs-Lab/multimodal-search-r1",
        ("mmsearch_r1_infoseek_sub_2k.parquet",),
        get="get mmsearch_r1/data/mmsearch_r1_infoseek_sub_2k.parquet with git lfs from the source's repository",
    ),
    Published(
        "mmsearch",
        171,
        "not stated by its authors",
        HUB + "CaraJ/MMSearch",
        ("end2end.parquet",),
        (
            Layout("query", "gt_answer", "query_image", "sample_id", also="alternative_gt_answers", category="area", needs_picture=True),
            FVQA,
        ),
        "CaraJ/MMSearch",
    ),
    Published(
        "simplevqa",
        1_013,
        "Apache-2.0",
        HUB + "m-a-p/SimpleVQA",
        ("test.parquet",),
        (Layout("question", "answer", "image", "data_id", category="vqa_category", only={"language": ("EN", "en")}), FVQA),
        "m-a-p/SimpleVQA",
    ),
    Published(
        "livevqa",
        3_602,
        "CC-BY-NC-4.0",
        HUB + "ONE-Lab/LiveVQA-Research-Preview",
        ("qa.json", "image/*"),
        (Layout("query", "gt_answer", "query_image", "sample_id", folders=("image", ".")), FVQA),
        "ONE-Lab/LiveVQA-Research-Preview",
    ),
)
PUBLISHED = {published.name: published for published in _ALL}
