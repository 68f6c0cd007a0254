"""Benchmarks: the five published ones by name, and a user's own files.

Promise: `open_benchmark` gives a set whose schema fits and whose number of questions is right, or says in one sentence what is
missing and where to put it. Nothing here needs Ray.
"""

from __future__ import annotations

import os
import re
from collections import Counter

from mmsr_ray.config import DataConfig
from mmsr_ray.data.schema import BadRows, DataError
from mmsr_ray.evaluation.benchmarks.benchmark import Benchmark, read_questions
from mmsr_ray.evaluation.benchmarks.layouts import fitting, recognise
from mmsr_ray.evaluation.benchmarks.places import tables_at, tables_of
from mmsr_ray.evaluation.benchmarks.published import PUBLISHED, Published
from mmsr_ray.evaluation.benchmarks.tables import open_table

__all__ = ["PUBLISHED", "Benchmark", "open_benchmark"]

_NAMED = re.compile(r"([A-Za-z0-9_.-]+)=(.+)")


def open_benchmark(name_or_path: str, config: DataConfig) -> Benchmark:
    """A benchmark by what a user writes:

    - a name of `PUBLISHED`: out of `config.benchmarks_dir`, or from the hub;
    - such a name and a path, "simplevqa=/data/simplevqa.parquet": the set's own files, or the same questions in the FVQA schema;
    - a path, or "mine=/data/mine.jsonl": one's own parquet, JSONL or JSON, in the FVQA schema or with columns question, answer
      and image (`layouts.KNOWN` lists other names).

    Raises DataError.
    """
    named = _NAMED.fullmatch(name_or_path)
    name, path = (named[1], named[2]) if named else ("", name_or_path)
    if not named and path in PUBLISHED:
        published = PUBLISHED[path]
        return _published(published, tables_of(published, config.benchmarks_dir), config)
    if name in PUBLISHED:
        return _published(PUBLISHED[name], tables_at(path, PUBLISHED[name].files[0]), config)
    if not named and not os.path.exists(path) and not any(mark in path for mark in "/\\.*"):
        raise DataError(f"there is no benchmark {path}: name {', '.join(PUBLISHED)}, or the path of a parquet or JSONL file")
    return _own(name or os.path.splitext(os.path.basename(path.rstrip("/")))[0], path, config)


def _published(published: Published, files: list[str], config: DataConfig) -> Benchmark:
    tables = [open_table(file) for file in files]
    fitted = [(table, fitting(published.layouts, table.columns, published.name, table.file)) for table in tables]
    bad, left_out = BadRows(), Counter[str]()
    questions = read_questions(fitted, config, published.name, bad, left_out)
    return Benchmark(published.name, published.size, published.licence, published.source, questions, bad, left_out, config)


def _own(name: str, path: str, config: DataConfig) -> Benchmark:
    tables = [open_table(file) for file in tables_at(path)]
    bad, left_out = BadRows(), Counter[str]()
    layouts = {columns: recognise(columns, file) for columns, file in {table.columns: table.file for table in reversed(tables)}.items()}
    questions = read_questions([(table, layouts[table.columns]) for table in tables], config, name, bad, left_out)
    return Benchmark(name, None, "the user's own", path, questions, bad, left_out, config)
