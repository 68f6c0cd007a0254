"""What test sets would be given away: their pictures, questions, and facts where they know their concepts. Reads files, no Ray."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import fsspec
import pyarrow.parquet as pq

from mmsr_ray.config import DataConfig
from mmsr_ray.data.construction.candidate import SCHEMA, read
from mmsr_ray.data.construction.duplicates import Secrets
from mmsr_ray.data.construction.fingerprints import Likenesses, fingerprint
from mmsr_ray.data.reader import find_files, iter_samples
from mmsr_ray.data.schema import DataError
from mmsr_ray.rewards.match import normalise


def secrets_of(paths: Sequence[str], bits: int, config: DataConfig) -> Secrets:
    """Of parquet sets in the FVQA schema, and of stage files. Raises DataError for one that cannot be read."""
    secrets = Secrets(Likenesses(bits))
    for path in paths:
        if _is_stage_file(path):
            for candidate in read(path, kept=True):
                secrets.pictures.add(fingerprint(candidate.image))
                secrets.ask(candidate.question, candidate.answers)
                secrets.facts |= {(normalise(candidate.concept), normalise(a)) for a in candidate.answers if candidate.concept}
        else:
            for sample in iter_samples(path, config):
                secrets.pictures.add(fingerprint(sample.image))
                secrets.ask(sample.question, sample.answers)
    return secrets


def versions(path: str) -> str:
    """A hash that changes when the files of a set are others: of their names and sizes."""
    if not path:
        return ""
    described = []
    for file in find_files(path):
        filesystem, name = fsspec.core.url_to_fs(file)
        described.append(f"{name.rsplit('/', 1)[-1]} {filesystem.size(name)}")
    return hashlib.sha256("\n".join(described).encode()).hexdigest()[:16]


def _is_stage_file(path: str) -> bool:
    try:
        return pq.read_schema(path).names == SCHEMA.names
    except OSError:
        return False  # a folder, a glob or a URL
    except ValueError as error:  # pyarrow's own errors
        raise DataError(f"{path} is no parquet file ({error}): correct construction.test_sets") from error
