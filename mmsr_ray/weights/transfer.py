"""vLLM's side of a weight update: a WeightTransferEngine that takes a version by one of three ways.

It pulls the version's buckets from Ray's object store; or receives it in a group with the learner (`collective`), and pulls it all the
same where that breaks; or opens the learner's memory on its own card (`shared`).

Promise: after `finish_weight_update` the model holds exactly that version. At the first update the names that
were published are compared with the model's checkpoint both ways and every checksum that came along is verified, so that
a mismatch between learner and engine is an error at the start of a run, not a policy that quietly never changes.

A version is whole weights, or adapters alone: those are added to the base weights in the model's folder, which are read
again each time rather than kept, and only the layers that have adapters are loaded.

It lives in vLLM's worker process, which attaches to the Ray cluster as a driver of its own. Over vLLM's control plane
go only the fields of `Update` and the store's name. vLLM loads it through the entry point `mmsr_weights` of the group
`vllm.general_plugins`, in every one of its processes.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from safetensors import safe_open
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from mmsr_ray.weights import shared
from mmsr_ray.weights.adapters import WEIGHT, Adapter, collect, expected, is_adapter, layers_to_reload
from mmsr_ray.weights.collective import CollectiveFailed, Group, Meeting
from mmsr_ray.weights.publisher import Bucket, checksum
from mmsr_ray.weights.store import find_store, pull
from mmsr_ray.weights.waking import wake_to_zeros

logger = logging.getLogger(__name__)

BACKEND = "mmsr_weights"
PULL_SECONDS = 300.0  # deadline of one bucket's way into this node's store


class WeightMismatch(RuntimeError):
    """What was published is not what the model consists of."""


def register() -> None:
    """Entry point: make the backend known to vLLM. vLLM may call it more than once in a process."""
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    if BACKEND not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(BACKEND, __name__, Transfer.__name__)
    _send_all_pictures()


def _send_all_pictures() -> None:
    """Have vLLM's scheduler send its workers every picture of a request, also those that the prefix cache covers.

    It leaves these out (vllm-project/vllm pull request 52041: nobody would encode them). But an update under running
    requests throws the prefix cache away and begins them anew: their pictures are encoded again, by a worker that does not
    have them, which is the end of the engine ("Expected number of multimodal embeddings to match ... 0"). What it costs is
    what vLLM paid before that change: nothing where the worker runs in the engine's process.
    """
    from vllm.v1.core.sched import output

    output.strip_covered_mm_data = _all_of_them


def _all_of_them(mm_features: list[Any], num_computed_tokens: int, uses_mrope: bool = False) -> list[Any]:
    return mm_features


@dataclass
class StoreAddress(WeightTransferInitInfo):
    """Where the WeightStore is; `ray_address` is the cluster's GCS address."""

    store: str
    namespace: str
    ray_address: str


@dataclass
class Update(WeightTransferUpdateInfo):
    """A version, and how it comes: by an `Invitation` as a dict, by `handles` from `shared.offer`, or from the object store."""

    version: int
    invitation: dict[str, Any] | None = None
    handles: bytes | None = None


class Transfer(WeightTransferEngine[StoreAddress, Update]):
    """Loads through vLLM's layerwise reload (plain `load_weights` fails on CPU after start)."""

    init_info_cls = StoreAddress
    update_info_cls = Update

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._address: StoreAddress | None = None
        self._verified = False
        self._base: BaseWeights | None = None  # for versions that are adapters
        self._reloading: list[Any] = []  # the model, or the layers that a set of adapters touches
        self._group: Group | None = None  # with the learner's rank 0
        self._tied = tied_head(self.model)
        if self.model_config.enable_sleep_mode:
            wake_to_zeros()

    def init_transfer_engine(self, init_info: StoreAddress) -> None:
        if not ray.is_initialized():
            ray.init(address=init_info.ray_address, namespace=init_info.namespace, log_to_driver=False, logging_level=logging.ERROR)
        self._address = init_info
        # Buckets are read-only memory; torch says so each time one is wrapped. Nothing here writes to them.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")

    def start_weight_update(self) -> None:
        """Nothing yet: what is to be reloaded the first bucket will tell."""
        self._reloading = []

    def _begin(self, modules: list[Any]) -> None:
        from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

        for module in modules:
            initialize_layerwise_reload(module)
        self._reloading = modules

    def update_weights(self, update_info: dict[str, Any]) -> None:
        """As in the base class, which synchronizes an accelerator that a CPU does not have."""
        self.receive_weights(self.parse_update_info(update_info))
        if torch.accelerator.is_available():
            torch.accelerator.synchronize()

    def receive_weights(self, update_info: Update) -> None:
        """Raises WeightMismatch at the first update where names or checksums disagree, UnknownVersion for one that is gone."""
        if update_info.handles is not None:
            self._load(iter([shared.opened(update_info.handles)]))
            shared.let_go()
        elif update_info.invitation is None or not self._received(update_info.invitation):
            self._load(self._pulled(update_info.version))
        self._verified = True

    def _received(self, invited: dict[str, Any]) -> bool:
        """Load what the learner sends. False when it did not arrive: then the model is a mixture, and any version can be loaded."""
        try:
            group, transfer = self._joined(invited)
            self._load(iter([group.receive(transfer)]))
        except CollectiveFailed as error:
            logger.warning("a version comes from the object store, the learner did not send it: %s", error)
            self._leave_group()
            self.finish_weight_update()  # layers that have a part of it could not begin anew
            return False
        return True

    def _joined(self, invited: dict[str, Any]) -> tuple[Group, str]:
        """The group of an invitation, and which transfer to receive in it."""
        meeting = Meeting(**invited["meeting"])
        if self._group is None or self._group.key != meeting.key:
            self._leave_group()
            rank = invited["first_rank"] + self.parallel_config.rank
            self._group = Group(meeting, rank, self.device, host=ray.util.get_node_ip_address())
        return self._group, invited["transfer"]

    def _pulled(self, version: int) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
        """Buckets from the object store, each valid until the next is asked for."""
        if self._address is None:
            raise RuntimeError("init_transfer_engine must come before an update")
        store = find_store(self._address.store, self._address.namespace)  # by name each time: one that died is replaced
        for bucket in pull(store, version, PULL_SECONDS):
            if not self._verified:
                _verify_checksums(bucket)
            yield _tensors(bucket, self.device)

    def _load(self, parts: Iterator[Iterator[tuple[str, torch.Tensor]]]) -> None:
        """Whole weights as they come, adapters once all are there."""
        names: list[str] = []
        adapters: dict[str, torch.Tensor] = {}

        def whole(tensors: Iterator[tuple[str, torch.Tensor]]) -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors:
                names.append(name)
                if is_adapter(name):
                    adapters[name] = tensor.clone()
                else:
                    yield name, tensor

        for tensors in parts:
            ours = whole(tensors)
            if (first := next(ours, None)) is None:
                continue
            if not self._reloading:
                self._begin([self.model])
            cast(Any, self.model).load_weights(itertools.chain([first], ours))
        if adapters:
            self._load_adapters(collect(adapters))
        elif not self._verified:
            self._verify_names(names)

    def _load_adapters(self, adapters: dict[str, Adapter]) -> None:
        """Base plus adapter for the layers that have one; an engine's layer is reloaded whole."""
        model = cast(Any, self.model)
        if self._base is None:
            self._base = BaseWeights(self.model_config.model, self.model_config.revision, lambda name: _in_one_model_term(model, name))
        base, device = self._base, self.device
        touched = {_in_one_model_term(model, module + WEIGHT).removesuffix(WEIGHT): adapter for module, adapter in adapters.items()}
        if not self._verified:
            compare_names(set(touched), expected(set(touched), base.names))
        layers = layers_to_reload(touched, base.names, model.packed_modules_mapping)
        self._begin([model.get_submodule(layer) for layer in layers])

        def merged() -> Iterator[tuple[str, torch.Tensor]]:
            for name in itertools.chain.from_iterable(layers.values()):
                own, tensor = base.read(name, device)
                adapter = touched.get(name.removesuffix(WEIGHT)) if name.endswith(WEIGHT) else None
                yield own, tensor if adapter is None else adapter.merged(tensor)

        model.load_weights(merged())

    def finish_weight_update(self) -> None:
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        for module in self._reloading:
            finalize_layerwise_reload(module, self.model_config)
        if self._reloading == [self.model]:  # adapters never touch the embedding
            self._refresh_tied_head()
        self._reloading = []

    def _refresh_tied_head(self) -> None:
        """vLLM reloads a tied embedding, but not what a CPU made of it for the head: a packed copy, which would stay old."""
        if self._tied:
            language = cast(Any, self.model).get_language_model()
            head = language.lm_head.tie_weights(language.model.embed_tokens)
            head.quant_method.process_weights_after_loading(head)

    def shutdown(self) -> None:
        """The store belongs to the Algorithm; this process's connection ends with the process."""
        self._address = None
        self._leave_group()

    def _leave_group(self) -> None:
        if self._group is not None:
            self._group.close()
            self._group = None

    def _verify_names(self, published: Iterable[str]) -> None:
        compare_names(
            _in_model_terms(self.model, published, self._tied),
            _in_model_terms(self.model, checkpoint_names(self.model_config.model, self.model_config.revision), self._tied),
        )


def tied_head(model: Any) -> bool:
    """Whether a loaded model's head is its embedding. The model knows; its config says so in one of several places, by who wrote it."""
    language = model.get_language_model()
    return language.lm_head.weight is language.model.embed_tokens.weight


def _tensors(bucket: Bucket, device: torch.device) -> Iterator[tuple[str, torch.Tensor]]:
    """On the way to a card through pinned memory: a copy from the object store's own would be several times slower, and be waited for."""
    for name, packed in bucket.items():
        tensor = packed.tensor()
        yield name, tensor if device.type == "cpu" else tensor.pin_memory().to(device, non_blocking=True)


def _verify_checksums(bucket: Bucket) -> None:
    torn = [name for name, packed in bucket.items() if packed.checksum is not None and checksum(packed.data) != packed.checksum]
    if torn:
        raise WeightMismatch(f"{len(torn)} weights arrived with a wrong checksum, first {torn[0]}")


def compare_names(published: set[str], expected: set[str]) -> None:
    """Raises WeightMismatch, naming what is missing and what is unknown."""
    missing, unknown = sorted(expected - published), sorted(published - expected)
    if missing or unknown:
        raise WeightMismatch(
            f"learner and engine disagree on weights: {len(missing)} not published {missing[:3]}, {len(unknown)} unknown {unknown[:3]}"
        )


def checkpoint_names(model: str, revision: str | None) -> set[str]:
    """Names of the weights in a model folder or a hub model that is already on this machine. Raises FileNotFoundError."""
    return set(checkpoint_files(model, revision))


def checkpoint_files(model: str, revision: str | None) -> dict[str, Path]:
    """The file of each weight. Raises FileNotFoundError."""
    folder = Path(model)
    if not folder.is_dir():
        from huggingface_hub import hf_hub_download

        # Not `snapshot_download`, which refuses a snapshot without every file of the repository: vLLM fetches what it needs.
        folder = Path(hf_hub_download(model, "config.json", revision=revision, local_files_only=True)).parent
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        return {name: folder / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    files = sorted(folder.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no safetensors files: weights published by the learner cannot be compared")
    found: dict[str, Path] = {}
    for file in files:
        with safe_open(os.fspath(file), framework="pt") as weights:
            found |= dict.fromkeys(weights.keys(), file)
    return found


class BaseWeights:
    """The weights of a model folder by the engine's names, read when asked for. Files stay mapped, tensors are not kept."""

    def __init__(self, model: str, revision: str | None, term: Callable[[str], str]) -> None:
        self._files = checkpoint_files(model, revision)
        self._own = {term(name): name for name in self._files}
        self._open: dict[Path, Any] = {}

    @property
    def names(self) -> Set[str]:
        return self._own.keys()

    def read(self, name: str, device: torch.device) -> tuple[str, torch.Tensor]:
        """The checkpoint's own name of it, and the tensor on `device`."""
        own = self._own[name]
        file = self._files[own]
        if file not in self._open:
            self._open[file] = safe_open(os.fspath(file), framework="pt")
        return own, self._open[file].get_tensor(own).to(device)


def _in_model_terms(model: Any, names: Iterable[str], tied: bool) -> set[str]:
    """Names as vLLM's model knows them: checkpoints of one model are spelled in several ways, depending on who saved them."""
    mapped = {_in_one_model_term(model, name) for name in names}
    # A tied head is the embedding: some write it out, some do not, and vLLM ignores it.
    return {name for name in mapped if not (tied and "lm_head." in name)}


def _in_one_model_term(model: Any, name: str) -> str:
    mapper = model.hf_to_vllm_mapper if hasattr(model, "hf_to_vllm_mapper") else None
    return next(iter(mapper.apply_list([name])), name) if mapper is not None else name
