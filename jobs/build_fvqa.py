"""Builds a search-balanced data set from a list of concepts (spec §5.3).

    python jobs/submit.py -- python jobs/build_fvqa.py --config jobs/configs/build_atlas.yaml
    python jobs/build_fvqa.py --config mine.yaml construction.concepts=concepts.txt construction.until=sampled

Each stage writes `<run>/NN_<stage>.parquet` with every candidate, dropped ones with their reason. Submit it again and whole stages
are not made again, and no answer of a service is paid for twice: what services answered is kept in `<run>/cache` unless tools.cache says
where. The set lies in `<run>/dataset`, the numbers in `<run>/construction.json`. Exit status as of jobs/train.py.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the jobs package, when this file is run as a script

from jobs.atlas_stage import check_labels, world
from jobs.command import run_job
from jobs.roll_out import settings_of
from jobs.search_balance import label_stage, mixture_stage
from mmsr_ray.config import Config, ConfigError, to_yaml
from mmsr_ray.data.construction import journal, others, taxonomy, writing
from mmsr_ray.data.construction.balance_settings import in_words
from mmsr_ray.data.construction.candidate import Candidate, Origin, read, write
from mmsr_ray.data.construction.card import About
from mmsr_ray.data.construction.concepts import read_concepts, sample
from mmsr_ray.data.construction.dataset import write_dataset
from mmsr_ray.data.construction.duplicates import distinct
from mmsr_ray.data.construction.flow import Step, fingerprints, flow
from mmsr_ray.data.construction.illustration import illustrate
from mmsr_ray.data.construction.leakage import secrets_of, versions
from mmsr_ray.data.construction.review.exchange import check_export
from mmsr_ray.data.construction.settings import STAGES
from mmsr_ray.data.construction.stage_files import StageFiles, file_hash, status_counts, summary
from mmsr_ray.data.schema import DataError
from mmsr_ray.evaluation.summary import machine, write_json
from mmsr_ray.observability.progress import Progress
from mmsr_ray.tools.actor import RemoteTools, start_tools, stop_tools

SUMMARY = "construction.json"
DATASET = "dataset"
REVIEWED = "review"


class Building:
    """One submission. Needs a running Ray."""

    def __init__(self, config: Config, tools: RemoteTools, progress: Progress) -> None:
        self.config, self.tools = config, tools
        self.folder = Path(config.run.dir, config.run.name)
        self.files = StageFiles(self.folder, progress.note, self.spent)
        self._progress = progress

    def spent(self) -> float:
        """USD, of all submissions."""
        return asyncio.run(self._spent())

    async def _spent(self) -> float:
        await self.tools.settle()
        account = await self.tools.account()
        return account.spent if account else 0.0

    def stages(self) -> Iterator[Path]:
        """The file of each stage, as it is there."""
        yield (file := self._concepts())
        yield (file := self._served("pictures", file, illustrate, self._web()))
        yield (file := self._served("questions", file, writing.write, self._author(writing.TASK)))
        yield (file := self._joined(file))
        yield (file := self._distinct(file))
        yield (file := self._served("classified", file, taxonomy.classify, self._author(taxonomy.TASK)))
        yield (file := self._sampled(file))
        yield (file := self._labelled(file))
        yield self._mixed(file)

    # ------------------------------------------------------------------------------------------------ stages

    def _concepts(self) -> Path:
        c = self.config.construction
        depends = {"seed": self.config.run.seed, **self._settings("head_share", "head", "tail")}
        depends |= {name: _version(path) for name, path in (("concepts", c.concepts), ("concept_counts", c.concept_counts))}

        def make(target: Path, made_from: Mapping[str, str]) -> None:
            found = read_concepts(c.concepts, c.concept_counts) if c.concepts else []
            write(target, sample(found, c, self.config.run.seed), made_from)

        return self.files.stage("concepts", None, depends, make)

    def _served(self, name: str, source: Path, step: Step, depends: Mapping[str, Any]) -> Path:
        """A stage that asks services about each candidate."""

        def make(target: Path, made_from: Mapping[str, str]) -> None:
            write(target, flow(source, step, self.tools, self.config.construction), made_from)

        return self.files.stage(name, source, depends, make)

    def _joined(self, source: Path) -> Path:
        c, data = self.config.construction, self.config.data

        def joined() -> Iterator[Candidate]:
            yield from read(source)
            if c.textual:
                yield from others.textual(c.textual, c.textual_pool, data, self.config.run.seed)
            if c.manual:
                yield from others.manual(c.manual, data)

        depends = {"seed": self.config.run.seed, "textual": versions(c.textual), "manual": _version(c.manual)} | self._settings(
            "textual_pool"
        )
        return self.files.stage("joined", source, depends, lambda target, made_from: write(target, joined(), made_from))

    def _distinct(self, source: Path) -> Path:
        c = self.config.construction

        def make(target: Path, made_from: Mapping[str, str]) -> None:
            secrets = secrets_of(c.test_sets, c.picture_bits, self.config.data)
            marks = fingerprints(source, c.workers)
            write(target, distinct(lambda: read(source), marks, secrets, c.picture_bits, c.question_likeness), made_from)

        depends = self._settings("picture_bits", "question_likeness") | {"test_sets": [versions(path) for path in c.test_sets]}
        return self.files.stage("distinct", source, depends, make)

    def _sampled(self, source: Path) -> Path:
        c, seed = self.config.construction, self.config.run.seed
        wanted = {Origin.VISUAL.value: c.visual_questions, Origin.TEXTUAL.value: c.textual_questions}

        def make(target: Path, made_from: Mapping[str, str]) -> None:
            items = {origin: [(k.key, k.category) for k in read(source, kept=True) if k.origin == origin] for origin in Origin}
            chosen = set().union(*(taxonomy.even_sample(found, wanted.get(origin, 0), seed) for origin, found in items.items()))
            dropped = (k if not k.kept or k.key in chosen else k.dropped("sampled out") for k in read(source))
            write(target, dropped, made_from)

        return self.files.stage("sampled", source, {"seed": seed} | self._settings("visual_questions", "textual_questions"), make)

    def _labelled(self, source: Path) -> Path:
        def make(target: Path, made_from: Mapping[str, str]) -> None:
            label_stage(self.config, source, target, self.folder / journal.FILE, made_from)

        balance = self.config.construction.balance
        rule = {name: getattr(balance, name) for name in ("min_support", "min_success", "min_survivors")}
        depends = settings_of(self.config) | rule
        return self.files.stage("labelled", source, depends, make)

    def _mixed(self, source: Path) -> Path:
        balance = self.config.construction.balance
        depends = {"seed": self.config.run.seed, "required_per_free": balance.required_per_free, "questions": balance.questions}
        return self.files.stage("mixed", source, depends, lambda target, made_from: mixture_stage(self.config, source, target, made_from))

    # ------------------------------------------------------------------------------------------------ what stages depend on

    def _settings(self, *names: str) -> dict[str, Any]:
        return {f"construction.{name}": getattr(self.config.construction, name) for name in names}

    def _web(self) -> dict[str, Any]:
        tools = self.config.tools
        kinds = {"tools.picture_finder.kind": tools.picture_finder.kind, "tools.reader.kind": tools.reader.kind}
        return (
            kinds
            | {"tools.page_chars": tools.page_chars, "tools.picture_pixels": tools.picture_pixels}
            | self._settings("pictures_per_concept")
        )

    def _author(self, task: str) -> dict[str, Any]:
        model = self.config.tools.model
        depends = {
            "tools.model.kind": model.kind,
            "tools.model.model": model.model,
            "prompt": hashlib.sha256(task.encode()).hexdigest()[:12],
        }
        if task == taxonomy.TASK:
            return depends | self._settings("categories", "question_tries")
        return depends | self._settings("questions_per_picture", "question_tries", "max_answer_words", "page_chars", "structured_output")

    # ------------------------------------------------------------------------------------------------ the end

    def finish(self, last: Path, *, whole: bool) -> None:
        """Write the set where the stages are all there and reviewed, and construction.json in any case."""
        config, questions = self.config, status_counts(last)["kept"]
        content = summary(self.files.results, questions, self.spent(), run=config.run.name, seed=config.run.seed, machine=machine())
        if whole and config.atlas.enabled:
            content |= check_labels(config, read(last))
            self._progress.note(_labels(content))
        reviewed = self._reviewed(last) if whole and config.construction.review else last
        if whole and reviewed:
            stages = {result.name: {"kept": result.kept, **result.dropped} for result in self.files.results}
            policy = "/".join(Path(config.model.path).parts[-2:])  # a hub's id, or a folder and the one that it lies in
            labels = f"{policy} ({in_words(config.construction.balance)})"
            written = {"questions written by": config.tools.model.model, "labels by": labels}
            about = About(name=config.run.name, construction=config.construction, made_with=written, stages=stages)
            write_dataset(self.folder / DATASET, {"train": read(reviewed)}, about)
        write_json(self.folder / SUMMARY, content)
        self._progress.note(_pace(content))

    def _reviewed(self, mixed: Path) -> Path | None:
        """What people have decided, exported; None, and how to get it, where it is not there. Raises DataError for
        a review of another version."""
        file = self.folder / f"{len(STAGES) + 1:02d}_{REVIEWED}.parquet"
        if not file.is_file():
            self._progress.note(
                f"the set waits for its review: python -m mmsr_ray.data.construction.review {self.folder}, its export, then submit this again"
            )
            return None
        check_export(file, mixed)
        return file


def _pace(content: Mapping[str, Any]) -> str:
    pace, cost = content["questions_per_hour"] or 0.0, content["cost_usd_per_1000_questions"] or 0.0
    return f"{content['questions']} questions, {pace:,.0f} an hour, {cost:.2f} USD a thousand (this run: {content['cost_usd']:.4f} USD)"


def _labels(content: Mapping[str, Any]) -> str:
    """Of Atlas: how right labels are, by rule."""
    lines = ["labels against Atlas' truth, in all and in the set:"]
    for name, rule in content["balance_rules"].items():
        shares = [f"{share:.1%}" if share is not None else "-" for share in (rule["accuracy"], rule["accuracy_in_set"])]
        lines.append(f"  {name}: {shares[0]} of {rule['labelled']}, {shares[1]} of {rule['questions']:.0f}")
    return "\n".join(lines)


def _version(path: str) -> str:
    """Of a file's content; "" where none is named. Raises DataError."""
    try:
        return file_hash(Path(path)) if path else ""
    except OSError as error:
        raise DataError(f"cannot read {path} ({error}): correct it in the section construction") from error


def build(config: Config) -> Path:
    """Ray must be connected. Returns the run folder."""
    _check(config)
    folder = Path(config.run.dir, config.run.name)
    folder.mkdir(parents=True, exist_ok=True)
    if not (config.tools.cache.dir or config.tools.cache.redis):
        cache = replace(config.tools.cache, dir=str(folder / "cache"))
        config = replace(config, tools=replace(config.tools, cache=cache))
    (folder / "config.yaml").write_text(to_yaml(config))
    progress = Progress()
    if config.atlas.enabled and not _rolls_out(config):  # a policy is not asked for, and none is to be made up where a trained one belongs
        config = replace(config, model=replace(config.model, path=str(Path(config.atlas.dir) / "policy")))
    with world(config) as here:
        tools = start_tools(here)
        try:
            asyncio.run(tools.check())
            building = Building(here, tools, progress)
            for name, file in zip(STAGES, building.stages(), strict=False):  # noqa: B007 (the last one is used)
                if name == config.construction.until:
                    break
            building.finish(file, whole=name == STAGES[-1])
        finally:
            stop_tools(here)
    progress.finish()
    return folder


def _check(config: Config) -> None:
    """Raises ConfigError for what would fail late."""
    c = config.construction
    if not (c.concepts or c.textual or c.manual):
        raise ConfigError("there is nothing to build from: name construction.concepts, textual or manual")
    for service, needed in (("picture_finder", c.concepts), ("model", c.concepts or c.textual)):
        if needed and getattr(config.tools, service).kind == "none":
            raise ConfigError(f"tools.{service}.kind is none: choose the service that builds the set (mmsr_ray/tools/README.md)")
    if config.atlas.enabled and _rolls_out(config) and not Path(config.model.path).is_dir():
        raise ConfigError(
            f"balancing needs a trained policy, and {config.model.path} is not there: run `make train` first, or set model.path"
        )


def _rolls_out(config: Config) -> bool:
    return config.construction.until not in STAGES[: STAGES.index("labelled")]


def main() -> int:
    return run_job("build", __doc__, build)


if __name__ == "__main__":
    sys.exit(main())
