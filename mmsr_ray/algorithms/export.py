"""A trained model as a folder for others: weights that transformers and vLLM load, and a model card.

    python -m mmsr_ray.algorithms.export runs/atlas --out my-model
    python -m mmsr_ray.algorithms.export runs/atlas/best --out my-model --license apache-2.0 --push me/my-model
    python -m mmsr_ray.algorithms.export runs/atlas/checkpoints/step_00000020 --out my-model

The source is a run folder (its final model, else its best, else its newest checkpoint), one of its model folders, or one of
its checkpoints. `--push` uploads the folder to the hub, with the token of HF_TOKEN (or of `hf auth login`).

Promise: the folder appears whole or not at all, and an existing one is never overwritten.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

from mmsr_ray.algorithms import model_card
from mmsr_ray.algorithms.checkpoints import read_settings, read_state, whole
from mmsr_ray.algorithms.during import BEST, BEST_FILE
from mmsr_ray.config import Config, ConfigError, from_dict, load
from mmsr_ray.evaluation.rows import read_rows
from mmsr_ray.evaluation.summary import FILE as SUMMARY
from mmsr_ray.evaluation.summary import read_summary
from mmsr_ray.learner.consolidate import consolidated
from mmsr_ray.learner.durable import NotWritten, complaint
from mmsr_ray.learner.export import local_folder, write_model

logger = logging.getLogger("export")

MODEL = "model"
CHECKPOINTS = "checkpoints"


class ExportError(RuntimeError):
    """The source is not one, or the target is in the way; one sentence says what to do."""


@dataclass(frozen=True, slots=True)
class Source:
    """What is exported: a model folder or a checkpoint, of the run in `run`."""

    path: Path
    run: Path
    checkpoint: bool

    @classmethod
    def find(cls, path: Path) -> Source:
        """Raises ExportError where there is no model."""
        path = path.absolute()
        if path.parent.name == CHECKPOINTS:
            if said := complaint(path):
                raise ExportError(said)
            return cls(path, path.parent.parent, checkpoint=True)
        if (path / "config.json").is_file():
            return cls(path, path.parent, checkpoint=False)
        for name in (MODEL, BEST):
            if (path / name / "config.json").is_file():
                return cls(path / name, path, checkpoint=False)
        found = whole(path / CHECKPOINTS)
        if not found:
            raise ExportError(f"{path} holds no model, best or whole checkpoint: name a run folder, or one of these in it")
        return cls(found[-1], path, checkpoint=True)

    def config(self) -> Config:
        """The run's resolved settings. Raises ExportError where they are missing."""
        try:
            return from_dict(read_settings(self.path)) if self.checkpoint else load(self.run / "config.yaml")
        except (ConfigError, OSError) as error:
            raise ExportError(f"the settings of the run {self.run} cannot be read: {error}") from error

    def step(self, config: Config) -> int | None:
        """Training steps behind the weights, where that is known."""
        if self.checkpoint:
            return int(read_state(self.path)["step"])
        if (self.path / BEST_FILE).is_file():
            return int(json.loads((self.path / BEST_FILE).read_text())["step"])
        return config.grpo.steps if self.path.name == MODEL else None


def card_of(source: Source, title: str, *, base_model: str = "", datasets: list[str] | None = None, license: str = "") -> model_card.Card:
    """What is known of the source. Rows are those of summary.json, or those measured so far; of a best model its own stand last."""
    config = source.config()
    original = load(source.run / "config.yaml") if (source.run / "config.yaml").is_file() else config  # a checkpoint names the warm start
    summary: dict[str, Any] = read_summary(source.run) if (source.run / SUMMARY).is_file() else {}
    return model_card.Card(
        title=title,
        config=original,
        step=source.step(config),
        rows=summary.get("rows") or read_rows(source.run),
        base_model=base_model or model_card.hub_id(original.model.path),
        datasets=datasets or [name for name in [model_card.hub_dataset(original.data.train)] if name],
        license=license,
        machine=summary.get("machine", {}),
    )


def export(source: Source, out: Path, card: model_card.Card) -> Path:
    """Write the folder `out`. Raises ExportError where it exists, NotWritten where the disk does not take it."""
    if out.exists():
        raise ExportError(f"{out} exists: choose another folder, or remove it")
    readme = {"README.md": model_card.write(card).encode()}
    if source.checkpoint:
        config = source.config()
        write_model(out, local_folder(config.model.path), consolidated(source.path, config), config.learner.dtype, readme)
        return out
    partial = Path(f"{out}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        shutil.copytree(source.path, partial)
        for name, content in readme.items():
            (partial / name).write_bytes(content)
        partial.rename(out)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise NotWritten(f"{out} was not written: {error.strerror or error}") from error
    return out


def push(folder: Path, repo: str, hub: HfApi, *, private: bool) -> str:
    """Upload a folder to a model repository of a hub, made where it is missing; returns its address. Raises ExportError."""
    try:
        address = hub.create_repo(repo, private=private, exist_ok=True)
        hub.upload_folder(repo_id=repo, folder_path=folder, commit_message="Model trained with mmsr-ray")
    except LocalTokenNotFoundError as error:
        raise ExportError(f"{repo} needs a token of the hub: set HF_TOKEN") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise ExportError(f"{folder} was not pushed to {repo}: {str(error).splitlines()[0]}") from error
    return str(address)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="run folder, model folder of a run, or checkpoint")
    parser.add_argument("--out", type=Path, required=True, help="folder to write; it must not exist")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the hub")
    parser.add_argument("--public", action="store_true", help="a repository that --push makes is private otherwise")
    parser.add_argument("--base-model", default="", help="hub id of the base model, where the run was given a folder")
    parser.add_argument("--dataset", action="append", help="hub id of the training data; may be repeated")
    parser.add_argument("--license", default="", help="an identifier the hub knows; left out, the card says that none is chosen")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    try:
        source = Source.find(args.source)
        card = card_of(source, args.push or args.out.name, base_model=args.base_model, datasets=args.dataset, license=args.license)
        logger.info("%s -> %s", source.path, export(source, args.out, card))
        if args.push:
            logger.info("pushed: %s", push(args.out, args.push, HfApi(), private=not args.public))
    except (ExportError, NotWritten) as error:
        logger.error("%s", error)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
