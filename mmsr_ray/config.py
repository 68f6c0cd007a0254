"""Every setting of a run, typed. One YAML over these defaults, `key=value` overrides on top. A YAML that differs little from
another names it (`base: atlas.yaml`, relative to its own folder) and holds the difference.

Promise: a `Config` that `load` returned is complete and possible. Unknown keys, wrong types and impossible
combinations raise `ConfigError` with one sentence that names the key and says what to do. Each room reads its own
section and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mmsr_ray.algorithms.settings import SFTConfig
from mmsr_ray.algorithms.settings import complaint as sft_complaint
from mmsr_ray.data.construction.settings import ConstructionConfig
from mmsr_ray.data.construction.settings import complaint as construction_complaint
from mmsr_ray.evaluation.settings import EvaluationConfig, FindingsConfig
from mmsr_ray.evaluation.settings import complaint as evaluation_complaint
from mmsr_ray.learner.colocation import complaint as colocation_complaint
from mmsr_ray.learner.objective import LossConfig
from mmsr_ray.learner.objective import complaint as loss_complaint
from mmsr_ray.learner.settings import LearnerConfig, MachineConfig
from mmsr_ray.learner.settings import complaint as learner_complaint
from mmsr_ray.nodes import complaint as node_complaint
from mmsr_ray.observability.trackers.settings import TrackingConfig
from mmsr_ray.observability.trackers.settings import complaint as tracking_complaint
from mmsr_ray.planning.settings import PlanConfig
from mmsr_ray.planning.settings import complaint as plan_complaint
from mmsr_ray.rewards.settings import RewardConfig
from mmsr_ray.rewards.settings import complaint as reward_complaint
from mmsr_ray.rollout.update import complaint as update_complaint
from mmsr_ray.serving.settings import ServingConfig
from mmsr_ray.serving.settings import complaint as serving_complaint
from mmsr_ray.tools.addresses import Reach
from mmsr_ray.tools.cache_settings import CacheConfig
from mmsr_ray.tools.cache_settings import complaint as cache_complaint
from mmsr_ray.weights.settings import complaint as transport_complaint


class ConfigError(ValueError):
    """An unknown or impossible setting; the message says which and what to do."""


@dataclass
class RunConfig:
    name: str = "run"
    dir: str = "runs"
    seed: int = 0
    namespace: str = "mmsr"  # Ray namespace of the run's named actors
    trackers: list[str] = field(default_factory=lambda: ["tensorboard"])  # tensorboard (always), wandb, mlflow
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class ModelConfig:
    path: str = MISSING  # folder or hub id of a Qwen2.5-VL model
    dtype: str = "bfloat16"  # of the engine: bfloat16 | float32 | float16
    min_pixels: int = 262_144  # 512 * 512, spec §1.8
    max_pixels: int = 903_168  # 672 * 672 * 2
    thumbnail_max_pixels: int = 90_000  # thumbnails are ~ 300 x 300


@dataclass
class DataConfig:
    train: str = MISSING  # parquet file, folder or glob, FVQA schema (spec §5.1)
    test: str = MISSING
    image_workers: int = 1
    prefetch_samples: int = 64
    max_image_bytes: int = 20_000_000
    max_image_pixels: int = 50_000_000
    max_question_chars: int = 8_000
    benchmarks_dir: str = ""  # where evaluation looks for benchmarks, NAME/ or NAME.parquet, before it asks the hub
    benchmark_sizes: str = "exact"  # a benchmark that has not its published number of questions: exact (refused) | warn


@dataclass
class AgentConfig:
    prompts: str = "standard"  # folder under mmsr_ray/agent/prompts, or a path to one's own
    max_turns: int = 3
    image_search_limit: int = 1
    text_search_limit: int = 2
    search_limit: int = 2  # both kinds together
    topk: int = 5
    allowed_paths: list[str] = field(default_factory=lambda: ["answer", "image,answer", "text,answer", "image,text,answer"])
    max_prompt_tokens: int = 4096
    max_turn_tokens: int = 2048
    max_total_tokens: int = 12_288  # prompt + everything after it (4096 + 8192)
    deadline_seconds: float = 600.0  # one whole episode


@dataclass
class PriceConfig:
    """What a service charges for what it answered, in USD."""

    per_call: float = 0.0
    per_million_input_tokens: float = 0.0  # as the service itself reports its usage
    per_million_output_tokens: float = 0.0


@dataclass
class ProviderConfig:
    """One service. `kind` names a class in tools/providers; the key is read from the environment."""

    kind: str = MISSING
    url: str = ""  # "": the kind's own address, where it has one, and its own key_env
    key_env: str = ""  # variable that holds the key; "" beside a url: the service takes none
    model: str = ""  # chat services: the model's name; image index: folder or hub id of a vision model
    path: str = ""  # local kinds: the file or folder they search
    rate_per_second: float = 50.0  # of the whole job; 0: no limit
    burst: int = 20
    concurrency: int = 64  # most requests in flight, of the whole job; fewer while the service is unwell
    timeout_seconds: float = 10.0
    price: PriceConfig = field(default_factory=PriceConfig)


@dataclass
class TapeConfig:
    """Recorded traffic. With the same tape a run needs no web and pays nothing."""

    mode: str = "off"  # off | record | replay (a miss is an error) | replay_then_live
    dir: str = ""


@dataclass
class S3Config:
    """The bucket of image_host.kind=s3; image_host.url is the endpoint ("": Amazon's)."""

    bucket: str = ""
    region: str = ""
    prefix: str = "mmsr"
    access_key_env: str = "AWS_ACCESS_KEY_ID"
    secret_key_env: str = "AWS_SECRET_ACCESS_KEY"
    public_url: str = ""  # root under which the bucket's objects are public; "": signed URLs
    expires_seconds: int = 3600  # of a signed URL


@dataclass
class ToolsConfig:
    image_search: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="serpapi_lens"))
    image_host: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="none"))  # where a picture without URL goes
    text_search: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="serpapi"))
    reader: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="jina"))
    summariser: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="extractive"))
    judge: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="none"))  # of answers, for the reward: none | chat
    model: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="none"))  # plays the policy, or writes questions: none | chat
    picture_finder: ProviderConfig = field(default_factory=lambda: ProviderConfig(kind="none"))  # pictures by words: jobs/build_fvqa.py
    s3: S3Config = field(default_factory=S3Config)
    cache: CacheConfig = field(default_factory=CacheConfig)
    tape: TapeConfig = field(default_factory=TapeConfig)
    budget_usd: float = 0.0  # of the whole run, over all its submissions; 0: no limit
    actors: int = 2
    node: str = ""  # custom resource of the nodes that the tool actors may lie on (mmsr_ray/nodes.py); "": any node
    deadline_seconds: float = 60.0  # over one whole call, retries included
    attempts: int = 4
    breaker_failures: int = 16
    breaker_cooldown_seconds: float = 5.0
    page_chars: int = 30_000
    thumbnail_bytes: int = 2_000_000
    thumbnail_pixels: int = 262_144  # a larger thumbnail is scaled down to this
    picture_bytes: int = 20_000_000  # of a picture found by words
    picture_pixels: int = 903_168  # such a one is scaled down to this: 672 * 672 * 2
    private_hosts: list[str] = field(default_factory=list)  # names, addresses or networks (10.0.0.0/8) that pages and thumbnails may lie on
    proxies_from_env: bool = False  # HTTP_PROXY, HTTPS_PROXY and NO_PROXY for services, pages and thumbnails


@dataclass
class RolloutConfig:
    num_runners: int = 1  # of the trial's placement group: training needs them; 0: as many as fit (jobs/evaluate.py)
    max_runners: int = 0  # with elastic ones, which join and leave as nodes do; 0: num_runners, none of them
    idle_seconds: float = 0.0  # an elastic runner without work for so long is let go, and asked for again when there is more; 0: it stays
    cpus_per_runner: float = 1.0
    gpus_per_runner: float = 0.0
    node: str = ""  # custom resource of the nodes that runners may lie on; "": any node
    max_inflight_groups: int = 64  # per runner
    temperature: float = 1.0
    seeded: bool = True  # rollouts follow from run.seed alone; costs nothing that could be measured (CPU: below 1 %)
    infra_retries: int = 2  # of a whole trajectory, on the runner
    infra_alarm_rate: float = 0.2
    min_survivors: int = 2
    group_deadline_seconds: float = 900.0
    # the engine
    max_num_seqs: int = 128
    max_model_len: int = 0  # 0: agent.max_total_tokens
    gpu_memory_utilization: float = 0.6
    kv_cache_gib: int = 1  # CPU only
    tensor_parallel: int = 1
    enforce_eager: bool = False
    threads: int = 1  # OMP threads of a CPU engine
    start_seconds: float = 600.0  # deadline of an engine start
    sync_seconds: float = 300.0  # deadline of one weight update in one engine
    update: str = "keep"  # of the weights, under turns that are being sampled: keep (they go on) | wait (they finish first)


@dataclass
class GRPOSettings:
    steps: int = 50
    groups_per_step: int = 512
    group_size: int = 8
    minibatches: int = 4  # optimiser steps per rollout batch
    staleness: int = 0
    filter_groups: bool | None = None  # drop groups whose raw correctness is constant; null: as loss.preset says (dapo: yes)
    filter_limit: int = 4  # at most this many times groups_per_step are dropped so in one step
    loss_limit: int = 5  # a prompt whose group is lost more often (dead runners, too few survivors) is given up
    lr: float = 2e-6
    lr_schedule: str = "sigmoid"  # sigmoid | constant | cosine
    lr_decay_ratio: float = 0.95
    lr_decay_at: int = 45
    lr_warmup_steps: int = 0
    checkpoint_every: int = 10
    keep_checkpoints: int = 2
    max_failures: int = 3
    step_seconds: float = 3600.0  # deadline of one training step
    sync_seconds: float = 300.0  # deadline of one weight sync of one runner
    placement_seconds: float = 1800.0  # how long a run waits for nodes with room for it
    driver_cpus: float = 0.1  # of the process that runs the Algorithm
    node: str = ""  # custom resource of the nodes that it, the weight store and the data feeder may lie on; "": any node
    groups_kept: int = 1  # groups of each step whose trajectories are written to the run folder
    loss: LossConfig = field(default_factory=LossConfig)


@dataclass
class AtlasConfig:
    """The made-up world; used by jobs and tests only."""

    enabled: bool = False
    dir: str = "runs/atlas"
    seed: int = 0
    known: int = 24
    unknown_demonstrated: int = 500
    unknown_train: int = 192
    unknown_test: int = 96
    train_questions: int = 1200
    test_questions: int = 240
    demonstrations: int = 5000  # of the warm start
    teacher: str = "oracle"  # whom jobs/sft.py imitates: oracle | worldly (atlas/oracle.py)
    latency_seconds: float = 0.0
    latency_tail: float = 0.0  # spread of a log-normal whose median latency_seconds then is; 0: every request takes latency_seconds
    latency_max_seconds: float = 3.0  # no request takes longer, where there is a tail
    failure_rate: float = 0.0
    rate_limit_rate: float = 0.0
    garbage_rate: float = 0.0
    hang_rate: float = 0.0  # share of requests that are never answered
    host: str = (
        "127.0.0.1"  # of its web: this machine alone; or an address of the job's node that other nodes reach, "node" for the one Ray uses
    )


@dataclass
class Config:
    run: RunConfig = field(default_factory=RunConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    tools: ToolsConfig = field(default_factory=ToolsConfig)
    rollout: RolloutConfig = field(default_factory=RolloutConfig)
    learner: LearnerConfig = field(default_factory=LearnerConfig)
    machine: MachineConfig = field(default_factory=MachineConfig)
    grpo: GRPOSettings = field(default_factory=GRPOSettings)
    sft: SFTConfig = field(default_factory=SFTConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    findings: FindingsConfig = field(default_factory=FindingsConfig)
    construction: ConstructionConfig = field(default_factory=ConstructionConfig)
    serving: ServingConfig = field(default_factory=ServingConfig)
    plan: PlanConfig = field(default_factory=PlanConfig)
    atlas: AtlasConfig = field(default_factory=AtlasConfig)


def load(path: str | Path | None = None, overrides: list[str] | None = None, *, under: list[str] | None = None) -> Config:
    """Typed config from defaults, a YAML file and dotted overrides; `under` are such too, but the file's own word beats them.

    Raises ConfigError.
    """
    try:
        for item in (*(under or []), *(overrides or [])):
            if "=" not in item:
                raise ConfigError(f"override {item!r} is not of the form key=value")
        below, above = (OmegaConf.from_dotlist([_with_value(item) for item in items or []]) for items in (under, overrides))
        merged = OmegaConf.merge(OmegaConf.structured(Config), below, *_files(path), above)
        config = cast(Config, OmegaConf.to_object(merged))
    except OmegaConfBaseException as error:
        raise ConfigError(_explain(error)) from error
    validate(config)
    return config


def _files(path: str | Path | None, above: tuple[Path, ...] = ()) -> list[Any]:
    """The contents of a config file, those of its bases before it. Raises ConfigError."""
    if path is None:
        return []
    file = Path(path).resolve()
    if not file.is_file():
        raise ConfigError(f"there is no config file {path}: name one under jobs/configs/")
    if file in above:
        raise ConfigError(f"{path} is its own base, over {', '.join(other.name for other in above)}: take one `base` out")
    content: Any = OmegaConf.load(file)
    base = content.pop("base", None) if OmegaConf.is_dict(content) else None
    return [*_files(file.parent / base if base else None, (*above, file)), content]


def _with_value(override: str) -> str:
    """A shell takes the quotes of key='' away; OmegaConf would read what is left as null."""
    key, _, value = override.partition("=")
    return f"{key}={value or repr('')}"


def to_dict(config: Config) -> dict[str, Any]:
    """Plain containers, for RLlib, for hashing and for the resolved YAML beside the results."""
    return cast(dict[str, Any], OmegaConf.to_container(OmegaConf.structured(config)))


def from_dict(values: dict[str, Any]) -> Config:
    """Inverse of `to_dict`."""
    return cast(Config, OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), values)))


def to_yaml(config: Config) -> str:
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def _explain(error: OmegaConfBaseException) -> str:
    key = error.full_key or error.key
    reason = str(error.msg or error).splitlines()[0]
    if "Key '" in reason and "not in" in reason:
        return f"there is no setting {key!r}: see mmsr_ray/config.py for the settings of that section"
    return f"setting {key!r}: {reason}"


def _require(ok: bool, sentence: str) -> None:
    if not ok:
        raise ConfigError(sentence)


def validate(c: Config) -> None:
    """Refuse what cannot run, before anything starts. Raises ConfigError."""
    said = tracking_complaint(c.run.trackers, c.run.tracking)
    _require(not said, said)
    _require(c.agent.max_turns >= 1, "agent.max_turns must be at least 1")
    _require(c.agent.topk >= 1, "agent.topk must be at least 1")
    _require(
        c.agent.max_total_tokens > c.agent.max_prompt_tokens,
        "agent.max_total_tokens must exceed agent.max_prompt_tokens: raise it or lower the prompt's",
    )
    for path in c.agent.allowed_paths:
        steps = path.split(",")
        _require(
            set(steps) <= {"image", "text", "answer"} and steps[-1] == "answer",
            f"agent.allowed_paths has {path!r}: a path is image/text steps ending in answer",
        )
        _require(
            len(steps) <= c.agent.max_turns,
            f"agent.allowed_paths has {path!r}, longer than agent.max_turns={c.agent.max_turns}: raise max_turns or drop the path",
        )
    said = reward_complaint(c.reward, judge=c.tools.judge.kind != "none")
    _require(not said, said)
    _require(c.tools.actors >= 1, "tools.actors must be at least 1")
    _require(c.tools.attempts >= 1, "tools.attempts must be at least 1: it counts the first request too")
    _require(c.tools.deadline_seconds > 0, "tools.deadline_seconds must be positive")
    _require(c.tools.budget_usd >= 0, "tools.budget_usd must be 0 (no limit) or more")
    said = cache_complaint(c.tools.cache)
    _require(not said, said)
    _require(
        c.tools.tape.mode in ("off", "record", "replay", "replay_then_live"),
        f"tools.tape.mode={c.tools.tape.mode!r}: choose off, record, replay or replay_then_live",
    )
    _require(c.tools.tape.mode == "off" or bool(c.tools.tape.dir), f"tools.tape.mode={c.tools.tape.mode} needs tools.tape.dir, a folder")
    _require(c.tools.thumbnail_pixels >= 1024, "tools.thumbnail_pixels must be at least 1024: a picture of 32x32")
    try:
        Reach.parse(c.tools.private_hosts)
    except ValueError as error:
        raise ConfigError(f"tools.private_hosts: {error}") from None
    for name in ("image_search", "image_host", "text_search", "reader", "summariser", "judge", "model", "picture_finder"):
        p: ProviderConfig = getattr(c.tools, name)
        _require(p.rate_per_second >= 0, f"tools.{name}.rate_per_second must be 0 (no limit) or more")
        _require(p.burst >= 1 and p.concurrency >= 1, f"tools.{name}: burst and concurrency must be at least 1")
        _require(p.timeout_seconds > 0, f"tools.{name}.timeout_seconds must be positive")
        prices = (p.price.per_call, p.price.per_million_input_tokens, p.price.per_million_output_tokens)
        _require(min(prices) >= 0, f"tools.{name}.price must not be negative: it is what the service charges, in USD")
    _require(c.model.dtype in ("bfloat16", "float32", "float16"), f"model.dtype={c.model.dtype!r}: choose bfloat16, float32 or float16")
    _require(c.model.min_pixels <= c.model.max_pixels, "model.min_pixels exceeds model.max_pixels")
    for name, node in ("rollout", c.rollout.node), ("learner", c.learner.node), ("grpo", c.grpo.node), ("tools", c.tools.node):
        said = node_complaint(f"{name}.node", node)
        _require(not said, said)
    said = learner_complaint(c.learner)
    _require(not said, said)
    _require(c.rollout.num_runners >= 0, "rollout.num_runners must be at least 1, or 0 in an evaluation (as many as fit)")
    _require(
        c.rollout.tensor_parallel == 1 or c.rollout.gpus_per_runner in (0, c.rollout.tensor_parallel),
        f"rollout.tensor_parallel={c.rollout.tensor_parallel} splits an engine over as many GPUs: set rollout.gpus_per_runner to the same",
    )
    _require(
        c.rollout.max_runners == 0 or c.rollout.max_runners >= c.rollout.num_runners,
        f"rollout.max_runners={c.rollout.max_runners} is below rollout.num_runners: raise it, or set 0 for no elastic runners",
    )
    _require(c.rollout.idle_seconds >= 0, "rollout.idle_seconds must be 0 (elastic runners stay) or more")
    said = update_complaint(c.rollout.update)
    _require(not said, said)
    _require(c.grpo.group_size >= 2, "grpo.group_size must be at least 2: a group of one has no baseline")
    _require(c.grpo.driver_cpus > 0, "grpo.driver_cpus must be above 0: Ray places the Algorithm in a bundle of its own")
    _require(c.grpo.keep_checkpoints >= 1, "grpo.keep_checkpoints must be at least 1")
    _require(c.grpo.staleness >= 0, "grpo.staleness must be 0 (on-policy) or more")
    _require(1 <= c.grpo.minibatches <= c.grpo.groups_per_step, "grpo.minibatches must lie between 1 and grpo.groups_per_step")
    _require(
        c.grpo.lr_schedule in ("sigmoid", "constant", "cosine"),
        f"grpo.lr_schedule={c.grpo.lr_schedule!r}: choose sigmoid, constant or cosine",
    )
    said = sft_complaint(c.sft, atlas=c.atlas.enabled)
    _require(not said, said)
    _require(c.atlas.teacher in ("oracle", "worldly"), f"atlas.teacher={c.atlas.teacher!r}: choose oracle or worldly")
    said = (
        loss_complaint(c.grpo.loss)
        or colocation_complaint(c.learner, c.rollout, c.grpo.staleness)
        or transport_complaint(c.learner, c.rollout, c.grpo.sync_seconds)
    )
    _require(not said, said)
    said = construction_complaint(c.construction)
    _require(not said, said)
    said = serving_complaint(c.serving)
    _require(not said, said)
    said = plan_complaint(c.plan)
    _require(not said, said)
    said = evaluation_complaint(c.evaluation, judge=c.tools.judge.kind != "none")
    _require(not said, said)
    _require(c.data.benchmark_sizes in ("exact", "warn"), f"data.benchmark_sizes={c.data.benchmark_sizes!r}: choose exact or warn")
    _require(0 < c.rollout.temperature <= 2, f"rollout.temperature={c.rollout.temperature}: choose a value above 0 and at most 2")
    _require(
        c.atlas.latency_tail == 0 or (c.atlas.latency_tail > 0 and c.atlas.latency_seconds > 0),
        "atlas.latency_tail spreads requests around atlas.latency_seconds: set both, above 0",
    )
    _require(c.rollout.min_survivors >= 2, "rollout.min_survivors must be at least 2")
    _require(
        c.agent.deadline_seconds < c.rollout.group_deadline_seconds, "rollout.group_deadline_seconds must exceed agent.deadline_seconds"
    )
