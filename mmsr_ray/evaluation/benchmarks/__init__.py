"""Benchmarks: the five published ones by name, and a user's own files.

Promise: `open_benchmark` gives a set whose schema fits and whose number of questions is right, or says in one sentence what is
missing and where to put it. Nothing here needs Ray.
"""

from __future__ import annotations

import os
from collections import Counter

from mmsr_ray.config import DataConfig
from mmsr_ray.data.schema import BadRows, DataError
from mmsr_ray.data.tables import open_table
from mmsr_ray.evaluation.benchmarks.benchmark import Benchmark, read_rows
from mmsr_ray.evaluation.benchmarks.layouts import fitting, recognise
from mmsr_ray.evaluation.benchmarks.places import tables_at, tables_of
from mmsr_ray.evaluation.benchmarks.published import PUBLISHED, Published
from mmsr_ray.evaluation.settings import name_and_path

__all__ = ["PUBLISHED", "Benchmark", "open_benchmark"]


def open_benchmark(name_or_path: str, config: DataConfig) -> Benchmark:
    """A benchmark by what a user writes:

    - a name of `PUBLISHED`: out of `config.benchmarks_dir`, or from the hub;
    - such a name and a path, "simplevqa=/data/simplevqa.parquet": the set's own files, or the same questions in the FVQA schema;
    - a path, or "mine=/data/mine.jsonl": one's own parquet, JSONL or JSON, in the FVQA schema or with columns question, answer
      and image (`layouts.KNOWN` lists other names).

    Raises DataError.
    """
    name, path = name_and_path(name_or_path)
    if name in PUBLISHED:
        published = PUBLISHED[name]
        alone = path == name
        files = tables_of(published, config.benchmarks_dir) if alone else tables_at(path, published.files[0])
        return _published(published, files, config)
    if path == name and not os.path.exists(path):
        raise DataError(f"there is no benchmark {path}: name {', '.join(PUBLISHED)}, or the path of a parquet or JSONL file")
    return _own(name, path, config)


def _published(published: Published, files: list[str], config: DataConfig) -> Benchmark:
    tables = [open_table(file) for file in files]
    fitted = [(table, fitting(published.layouts, table.columns, published.name, table.file)) for table in tables]
    bad, left_out = BadRows(), Counter[str]()
    questions = read_rows(fitted, config, published.name, bad, left_out)
    return Benchmark(published.name, published.size, published.licence, published.source, questions, bad, left_out, config)


def _own(name: str, path: str, config: DataConfig) -> Benchmark:
    tables = [open_table(file) for file in tables_at(path)]
    bad, left_out = BadRows(), Counter[str]()
    layouts = {columns: recognise(columns, file) for columns, file in {table.columns: table.file for table in reversed(tables)}.items()}
    questions = read_rows([(table, layouts[table.columns]) for table in tables], config, name, bad, left_out)
    return Benchmark(name, None, "the user's own", path, questions, bad, left_out, config)
