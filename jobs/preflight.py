"""The cluster before a run starts on it: room, images, storage. Asks Ray; what the answers mean is `mmsr_ray.preflight`'s to say.

Promise: what is wrong is told within a minute of the nodes being there, before anything is started or paid for. Nodes that join later
(elastic runners) are not looked at.
"""

from __future__ import annotations

import logging
import uuid
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.tune import PlacementGroupFactory
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from jobs.room import wait_for_room
from mmsr_ray.algorithms import checkpoints
from mmsr_ray.algorithms.parts import bundles
from mmsr_ray.config import Config
from mmsr_ray.head import living_nodes
from mmsr_ray.learner.durable import folder_bytes
from mmsr_ray.learner.memory import footprint_of
from mmsr_ray.learner.phases import frozen_copy, itemsize_of
from mmsr_ray.learner.shapes import PUBLISHED
from mmsr_ray.nodes import resources
from mmsr_ray.preflight.compare import checkpoint_bytes, no_room_on_disk, parameters_in, wrong_image, wrong_storage
from mmsr_ray.preflight.fleet import idle_cards, no_node
from mmsr_ray.preflight.look import SEEN_SECONDS, NodeReport, report

logger = logging.getLogger(__name__)

NODE_SECONDS = 40.0  # for a node to answer: it may have to unpack the job's files first
ADAPTERS = 0.1  # at most this share of a model's weights learns with LoRA


class PreflightError(RuntimeError):
    """The cluster is not fit for the run; one sentence says what is wrong and what to do."""


def check_cluster(config: Config) -> None:
    """Wait for room, then look at every node that can run something. Raises NoRoom, PreflightError and HeadAway."""
    wanted = bundles(config).bundles
    if config.tools.node:
        wanted = [*wanted, resources(config.tools.node)]
    wait_for_room(PlacementGroupFactory(wanted, strategy="PACK"), config.grpo.placement_seconds, explain=partial(no_node, config=config))
    if torch.version.cuda and (said := idle_cards([node.resources for node in living_nodes()], config)):  # a build for CPUs takes no card
        logger.warning("%s", said)
    check_nodes(config)


def check_nodes(config: Config) -> None:
    """Raises PreflightError and HeadAway."""
    folder = Path(config.run.dir, config.run.name).absolute()
    mark = f".preflight-{uuid.uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / mark).touch()
        here = report("driver", folder, mark, 0.0)
        others = _reports(folder, mark)
        back = [node.node for node in others if (folder / f"{mark}-{node.node}").exists()]
    except OSError as problem:
        raise PreflightError(f"{folder} cannot be written to here: {problem.strerror}; set run.dir to a folder that can") from None
    finally:
        for left in folder.glob(f"{mark}*"):
            left.unlink(missing_ok=True)
    said = (
        f"{folder} cannot be written to here: {here.error}; make room, or set run.dir to another"
        if here.error
        else wrong_image(here, others) or wrong_storage(folder, others, back)
    )
    if not said:
        said, warning = no_room_on_disk(folder, here.free, _checkpoint(config, folder), config.grpo.keep_checkpoints)
        if warning:
            logger.warning("%s", warning)
    if said:
        raise PreflightError(said)


def _reports(folder: Path, mark: str) -> list[NodeReport]:
    """Of the nodes that can run something, but this one."""
    own = ray.get_runtime_context().get_node_id()
    look: Any = ray.remote(num_cpus=0, max_retries=0)(report)
    asked = {}
    for node in living_nodes():
        if node.id != own and node.resources.get("CPU"):
            name = f"{node.address}-{node.id[:6]}"
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            asked[name] = look.options(scheduling_strategy=there).remote(name, folder, mark, SEEN_SECONDS)
    if asked:
        ray.wait(list(asked.values()), num_returns=len(asked), timeout=NODE_SECONDS)
    return [found for name, ref in asked.items() if (found := _answer(name, ref)) is not None]


def _answer(name: str, ref: Any) -> NodeReport | None:
    """None where the node is too slow or gone: that is for the run to live with. Raises PreflightError where our code does not run there."""
    try:
        return ray.get(ref, timeout=0)
    except GetTimeoutError:
        logger.warning("node %s did not answer within %.0f s: its image and storage are not checked", name, NODE_SECONDS)
    except RayTaskError as error:
        why = str(error).strip().splitlines()[-1]
        raise PreflightError(f"node {name} cannot run this code ({why}): give its group the image of the driver") from None
    except RayError as error:
        logger.warning("node %s could not be asked (%s): its image and storage are not checked", name, type(error).__name__)
    return None


def _checkpoint(config: Config, folder: Path) -> int:
    """About the bytes of one checkpoint: the last one's, else by the model's weights; 0 where neither is known."""
    if earlier := checkpoints.whole(folder / "checkpoints"):
        return folder_bytes(earlier[-1])
    return checkpoint_bytes(
        _parameters(config),
        itemsize=itemsize_of(config),
        trained=ADAPTERS if config.learner.lora.rank else 1.0,
        frozen_model=frozen_copy(config),
    )


def _parameters(config: Config) -> int:
    """Of the model; 0 where that is not known yet."""
    if config.model.path in PUBLISHED:  # known before anything of it is downloaded
        return footprint_of(config.model.path).parameters
    model = Path(config.model.path)
    if not model.is_dir():
        try:
            model = Path(snapshot_download(config.model.path, allow_patterns="*.safetensors", local_files_only=True))
        except (LocalEntryNotFoundError, HFValidationError):
            logger.info("how large a checkpoint is becomes known once %s has been downloaded", config.model.path)
            return 0
    return parameters_in(model)
