"""The questions of one benchmark that still need an answer, pictures streamed by Ray Data.

Promise: which questions belong to it follows from the file, `evaluation.questions` and `run.seed` alone: all of them, or the
first so many by hash whose picture is good. An interrupted evaluation asks the rest of the same ones. Only pictures of
questions that are about to be asked are in memory.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from mmsr_ray.config import Config, DataConfig
from mmsr_ray.data.cursor import digest
from mmsr_ray.data.reader import IndexRow, rank, read_index
from mmsr_ray.data.schema import BadRows
from mmsr_ray.data.stream import stream_samples
from mmsr_ray.evaluation.benchmarks import open_benchmark
from mmsr_ray.evaluation.run import Question
from mmsr_ray.types import Sample

HELD_OUT = "test"  # name of data.test, the benchmark where none is named


@dataclass(frozen=True)
class QuestionSet:
    """The questions of a benchmark, without pictures. `limit` of them are asked; 0: all."""

    name: str
    source: str
    rows: Sequence[IndexRow]
    config: DataConfig
    limit: int = 0
    seed: int = 0

    @property
    def digest(self) -> str:
        """Changes when the questions of the file do."""
        return digest(row.fields.uid for row in self.rows)

    def open_questions(self, done: Mapping[str, Collection[str]]) -> Iterator[Question]:
        """What is to be asked; `done` holds, by workflow, the uids that need no answer any more. Needs a running Ray.

        A question is asked in all workflows before the next one is. Rows whose picture is bad are logged and left out.
        """
        bad = BadRows()
        waiting = iter(self._in_order())
        wanted = self.limit or len(self.rows)
        while wanted > 0 and (part := list(islice(waiting, wanted))):
            open_rows = [row for row in part if any(row.fields.uid not in uids for uids in done.values())]
            wanted -= len(part) - len(open_rows)
            for sample in stream_samples(open_rows, self.config, bad):
                wanted -= 1
                yield from (Question(sample, workflow, self.name) for workflow, uids in done.items() if sample.uid not in uids)
        bad.log(self.source)

    def samples(self, uids: Collection[str]) -> Iterator[Sample]:
        """Those questions, in the order of the file."""
        return stream_samples([row for row in self.rows if row.fields.uid in uids], self.config, BadRows())

    def _in_order(self) -> list[IndexRow]:
        if not self.limit:
            return list(self.rows)
        return sorted(self.rows, key=lambda row: (rank(row.fields.uid, self.seed, 0), row.fields.uid))


def question_sets(config: Config) -> list[QuestionSet]:
    """Of `evaluation.benchmarks`, as `open_benchmark` takes them; without any, of `data.test`. Raises DataError.

    Looks at the pictures of a published set that is asked as a whole: a bad one makes its number of questions wrong.
    """
    limit, seed = config.evaluation.questions, config.run.seed
    if not config.evaluation.benchmarks:
        path = config.data.test
        return [QuestionSet(HELD_OUT, path, read_index(path, config.data).rows, config.data, limit, seed)]
    sets = []
    for named in config.evaluation.benchmarks:
        found = open_benchmark(named, config.data)
        rows = found.with_pictures() if found.size is not None and not limit else found.rows
        sets.append(QuestionSet(found.name, found.source, rows, config.data, limit, seed))
    return sets
