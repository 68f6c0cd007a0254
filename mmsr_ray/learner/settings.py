"""Settings of the learner. Pure.

Promise: settings that do not go together are refused at start (`complaint`), never ignored.
"""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class LoRAConfig:
    """Low-rank adapters on the language model (arXiv 2106.09685). Everything else is frozen."""

    rank: int = 0  # 0: no adapters, all weights learn
    alpha: int = 32
    targets: list[str] = field(default_factory=lambda: ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"])
    # what the engines are sent: merged (every weight, with the adapters in it) | adapter (the adapters alone; each engine adds
    # them to its own base weights, which must be those of model.path)
    sync: str = "merged"


@dataclass
class LearnerConfig:
    world_size: int = 2
    cpus_per_rank: float = 1.0
    gpus_per_rank: float = 0.0
    node: str = ""  # custom resource of the nodes that ranks may lie on (mmsr_ray/nodes.py); "": any node
    zero_stage: int = 2
    dtype: str = "float32"  # of compute: float32 | bfloat16 (fp32 master weights)
    device: str = "auto"  # auto | cpu | cuda
    # padded tokens of one micro-batch of one rank; 0: the most that memory allows, found at start
    micro_batch_tokens: int = 8_192
    probe: str = "auto"  # try the worst micro-batch of a given size once at start: auto (on GPUs) | always | never
    memory_share: float = 0.9  # of a device's (or a node's) memory that may be in use at the peak of a tried micro-batch
    packing: str = "auto"  # auto | never | always
    gradient_checkpointing: bool = False
    plain_layers: int = 0  # of the language model's layers, so many keep their activations all the same: memory for a second forward pass
    fused: bool = False  # norms, gates and rotary positions compiled into one kernel each: fewer activations, half a minute at start
    freeze_vision: bool = False  # the vision tower keeps its weights
    lora: LoRAConfig = field(default_factory=LoRAConfig)
    offload: str = "none"  # none | optimizer | all: what ZeRO keeps in host memory ("all" adds the weights; stage 3 only)
    colocated: bool = False  # runner i and rank i share a card and take turns; see mmsr_ray/weights/README.md
    reference: str = "device"  # device | host: where the frozen model of the KL term rests; adapters need none
    threads: int = 1
    weight_decay: float = 0.01
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    grad_clip: float = 1.0
    bucket_bytes: int = 512 << 20
    # how weights reach the engines that are up (mmsr_ray/weights/README.md): object_store | collective (NCCL, gloo on CPUs) | ipc
    # (colocated: the engine opens the learner's memory). Who restarts or joins always takes them from the object store.
    transport: str = "object_store"
    transport_seconds: float = 60.0  # collective: how long one member waits for another before all take the version from the object store
    update_seconds: float = 1800.0  # deadline of one update
    start_seconds: float = 600.0


@dataclass
class MachineConfig:
    """The cards and nodes that a run is meant for; 0: looked up at start, where that can be. `memory.py` refuses what cannot fit."""

    card_gib: float = 0.0  # memory of one card
    host_gib: float = 0.0  # of one node
    cards: int = 0  # of one node; 0: as many as the run uses


def on_cuda(c: LearnerConfig) -> bool:
    """Whether the ranks compute on GPUs."""
    return c.device == "cuda" or (c.device == "auto" and c.gpus_per_rank > 0)


def complaint(c: LearnerConfig) -> str:
    """One sentence about settings that cannot be or do not go together; "" when all is well."""
    return next((f"learner.{sentence}" for wrong, sentence in _rules(c) if wrong), "")


def _rules(c: LearnerConfig) -> list[tuple[bool, str]]:
    return [
        (c.zero_stage not in (0, 1, 2, 3), f"zero_stage={c.zero_stage}: choose 0, 1, 2 or 3"),
        (c.dtype not in ("float32", "bfloat16"), f"dtype={c.dtype!r}: choose float32 or bfloat16"),
        (c.device not in ("auto", "cpu", "cuda"), f"device={c.device!r}: choose auto, cpu or cuda"),
        (c.lora.rank < 0, "lora.rank must be 0 (no adapters) or more"),
        (c.lora.sync not in ("merged", "adapter"), f"lora.sync={c.lora.sync!r}: choose merged or adapter"),
        (
            c.lora.sync == "adapter" and c.lora.rank == 0,
            "lora.sync=adapter has no adapters to send: set learner.lora.rank, or choose merged",
        ),
        (c.reference not in ("device", "host"), f"reference={c.reference!r}: choose device or host"),
        (c.offload not in ("none", "optimizer", "all"), f"offload={c.offload!r}: choose none, optimizer or all"),
        (
            c.offload != "none" and c.zero_stage != 3 and not (c.offload == "optimizer" and c.zero_stage > 0),
            f"offload={c.offload} needs learner.zero_stage 3, or 1 and more for the optimizer alone",
        ),
        (c.world_size < 1, "world_size must be at least 1"),
        (c.packing not in ("auto", "never", "always"), f"packing={c.packing!r}: choose auto, never or always"),
        (c.micro_batch_tokens < 0, "micro_batch_tokens must be 0 (as many as memory allows) or more"),
        (c.plain_layers < 0, "plain_layers must be 0 (all layers are checkpointed) or more"),
        (
            c.plain_layers > 0 and not c.gradient_checkpointing,
            "plain_layers names exceptions from learner.gradient_checkpointing: set it to true, or plain_layers to 0",
        ),
        (c.probe not in ("auto", "always", "never"), f"probe={c.probe!r}: choose auto, always or never"),
        (not 0 < c.memory_share <= 1, f"memory_share={c.memory_share:g}: choose a share above 0 and at most 1"),
    ]
