"""The schema of the configuration: every key with its type, its default and its meaning."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from ..aggregation import AGGREGATION_RULES, Rule
from ..aggregation.compression import COMPRESSIONS, Compression, NoCompression
from ..aggregation.rules import WeightedMean
from ..algorithms import ALGORITHMS, Algorithm, FedAvg
from ..attacks import ATTACKS, Attack, NoAttack
from ..data import PARTITIONS, SKEWS, NoSkew, Partitioner, Skew
from ..data.datasets import DEFAULT_ROOT
from ..data.partition import IID
from ..models import CNN, MODELS, ImportedModule, ModelFactory
from ..optim import CONSTANT, SGD, ClientOptimizer, Schedule
from ..registry.choice import RULES, Choice, Off, UserPath
from ..sampling import SAMPLERS, Participation, Uniform
from ..tasks import TASKS, Classification, TaskFactory
from ..tasks.losses import LOSSES, Loss, Natural
from ..tasks.metrics import Target


class Section(BaseModel):
    """Base class of the sections: frozen, and unknown keys are refused."""

    model_config: ClassVar[ConfigDict] = {**RULES, "frozen": True, "arbitrary_types_allowed": True}


class RunSection(Section):
    """The run: name and folder, length, seed, device, how to resume."""

    name: str = Field(default="", description="name of the run folder; empty = <algorithm>-<data>-<model>")
    dir: Annotated[str, UserPath] = Field(default="runs", min_length=1, description="parent of run folders")
    seed: int = Field(default=0, ge=0, le=2**63 - 1, description="seed of all random choices")
    rounds: int = Field(default=10, ge=1, le=1_000_000, description="T, number of rounds")
    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="auto = cuda if available")
    backend: Literal["auto", "gloo", "nccl"] = Field(
        default="auto", description="auto = nccl if each rank has its own GPU"
    )
    threads: int = Field(
        default=0,
        ge=0,
        le=1024,
        description="CPU threads per rank; 0 = cores / local ranks (1 with aggregation.sum=exact)",
    )
    resume: Annotated[str, UserPath] = Field(
        default="never", min_length=1, description="never, auto (the newest run of this name), or a run folder"
    )
    timeout: float = Field(
        default=120.0, gt=0, le=1e7, description="seconds without progress before a rank counts as lost"
    )


class DataSection(Section):
    """The dataset, and how its examples are divided among the clients."""

    name: str = Field(default="mnist-mini", description="the dataset")
    root: Annotated[str, UserPath] = Field(
        default=DEFAULT_ROOT, description="folder in torchvision's layout (mnist-mini and synthetic need none)"
    )
    download: bool = Field(default=True, description="download files that root does not contain")
    args: dict[str, Any] = Field(default={}, description="further arguments of the dataset, by name")
    placement: Literal["auto", "home", "shared"] = Field(
        default="auto",
        description="home = a rank holds its own clients' examples only; shared = every rank holds all and trains any "
        "client (simulation); auto = home if each client is a rank, else shared",
    )
    partition: Annotated[
        Partitioner,
        Choice(PARTITIONS, {"name": "iid"}),
        Field(description="how examples are divided among the clients"),
    ] = IID()
    skew: Annotated[Skew, Choice(SKEWS, {"name": "none"}), Field(description="how the inputs of clients differ")] = (
        NoSkew()
    )


class ExecutionSection(Section):
    """How a rank trains its clients: one after the other, or batched."""

    name: Literal["auto", "sequential", "vectorized"] = Field(
        default="auto",
        description="sequential = one client after the other; vectorized = batched; auto = by model and device",
    )
    width: int = Field(
        default=0, ge=0, le=100_000, description="clients trained together on a rank, if vectorized; 0 = by model size"
    )


class ClientSection(Section):
    """Local training on a client."""

    local_epochs: int = Field(default=1, ge=1, le=10_000, description="E, passes over a client's examples per round")
    local_steps: Annotated[int | None, Off] = Field(
        default=None,
        ge=1,
        le=1_000_000,
        description="H, steps of a client per round; instead of local_epochs (default: off)",
    )
    stragglers: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="fraction of stragglers; each trains a uniformly drawn number of epochs (steps)",
    )
    drop_stragglers: bool = Field(
        default=False, description="ignore the updates of stragglers (FedAvg as FedProx compares with it)"
    )
    batch_size: int = Field(
        default=10,
        ge=0,
        le=2**31 - 1,
        description="B; 0 = all of a client's examples. For a model that does not train on one example (BatchNorm), a "
        "last batch of one is merged into the batch before",
    )
    order: Literal["fresh", "continue"] = Field(
        default="fresh",
        description="with local_steps, where a client begins in its examples: fresh = in a new order in every round; "
        "continue = after the last one of its round before, so that passes over its examples are whole",
    )
    clip_norm: Annotated[float | None, Off] = Field(
        default=None,
        gt=0,
        le=1e9,
        description="largest L2 norm of the gradient of a local step, the algorithm's correction included; longer ones "
        "are scaled down to it (default: off)",
    )
    precision: Literal["float32", "float64", "bfloat16"] = Field(
        default="float32",
        description="arithmetic of local training; bfloat16 = by autocast, while parameters, sums and evaluation stay "
        "float32 (for GPUs, and CPUs with bfloat16 instructions: others take 10 times as long)",
    )
    optimizer: Annotated[ClientOptimizer, Field(description="the optimizer of local training")] = SGD()
    optimizer_state: Literal["reset", "keep"] = Field(
        default="reset",
        description="what becomes of the client optimizer's moments between rounds: reset = new ones in every round; "
        "keep = each client goes on with its own, as the workers of DiLoCo do",
    )
    schedule: Annotated[Schedule, Field(description="factor of the learning rate, by round or local step")] = CONSTANT
    execution: ExecutionSection = ExecutionSection()


class CohortSection(Section):
    """Which clients take part in a round."""

    fraction: Annotated[float | None, Off] = Field(
        default=None, gt=0, le=1, description="C, fraction of the population per round (default: all)"
    )
    size: Annotated[int | None, Off] = Field(
        default=None, ge=1, le=10_000_000, description="m, number of clients per round; instead of fraction"
    )
    sampler: Annotated[
        Participation, Choice(SAMPLERS, {"name": "uniform"}), Field(description="how the clients of a round are drawn")
    ] = Uniform()
    deadline: Annotated[float | None, Off] = Field(
        default=None,
        gt=0,
        le=1e7,
        description="seconds of a round in which a rank's clients are trained; later ones do not count",
    )
    over_selection: float = Field(
        default=0.0, ge=0, le=9, description="fraction of further clients drawn, since some will miss the deadline"
    )


class AggregationSection(Section):
    """How updates become one: their sum, robust rules, compression."""

    sum: Literal["fast", "exact"] = Field(
        default="fast", description="fast = the model's precision; exact = the same bits for any number of ranks"
    )
    rule: Annotated[
        Rule, Choice(AGGREGATION_RULES, {"name": "mean"}), Field(description="how the updates of a round are combined")
    ] = WeightedMean()
    compression: Annotated[
        Compression, Choice(COMPRESSIONS, {"name": "none"}), Field(description="how updates are made smaller")
    ] = NoCompression()
    max_norm: Annotated[Annotated[float, Field(gt=0, le=1e9)] | Literal["auto"] | None, Off] = Field(
        default="auto",
        description="largest norm of an update; auto = 1000 times the mean norm of any round before, where norms are "
        "reported and no attack is configured; off",
    )


def checked_target(text: str | None) -> str | None:
    """Return ``text`` if it is off or can be read. Raises ValueError."""
    return text if text is None or Target.parse(text) else None


class EvaluateSection(Section):
    """When and where the model is evaluated."""

    every: int = Field(default=1, ge=0, le=1_000_000, description="rounds between evaluations; 0 = only after the last")
    where: Literal["rank0", "sharded"] = Field(
        default="sharded", description="sharded = all ranks evaluate; rank0 = rank 0 does, while the others continue"
    )
    target_accuracy: Annotated[float | None, Off] = Field(
        default=None, gt=0, le=1, description="stop when reached (default: off)"
    )
    target: Annotated[str | None, Off, AfterValidator(checked_target)] = Field(
        default=None,
        description="stop when a metric is reached, such as 'auroc>=0.95' or 'perplexity<=9' (default: off)",
    )
    clients_mean: bool = Field(
        default=False,
        description="also evaluate the mean of all clients' last models (as FedDyn's authors report); keeps a model "
        "for each client that took part",
    )
    holdout: float = Field(
        default=0.0, ge=0, lt=1, description="fraction of each client's own examples that is kept out of training"
    )
    personal_every: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="rounds between per-client evaluations on held-out data; 0 = off",
    )
    contribution: Literal["off", "leave_one_out", "shapley"] = Field(
        default="off",
        description="also measure what each client's update contributes to the test metric in evaluated rounds, for "
        "small cohorts: leave_one_out = the round's mean without it; shapley = a truncated Shapley value (on one rank)",
    )


class CheckpointSection(Section):
    """When checkpoints are written, and how many are kept."""

    every: int = Field(
        default=1, ge=0, le=1_000_000, description="rounds between checkpoints; 0 = only when interrupted"
    )
    keep: int = Field(default=3, ge=1, le=1_000_000, description="number of newest checkpoints kept, besides the best")
    clients_dir: Annotated[str, UserPath] = Field(
        default="",
        description="folder for this rank's client states, readable by this rank's user only; "
        "{rank} in it stands for the rank; empty = in the run folder",
    )


class SecureAggregationSection(Section):
    """Secure aggregation: only the sum of all ranks' updates can be read."""

    enabled: bool = Field(
        default=False, description="secure aggregation: mask what each rank sends, so that only the sum can be read"
    )
    bits: Literal[64, 32] = Field(
        default=64, description="bits of the ring of integers; 32 sends half the bytes and is coarser"
    )
    bound: float = Field(
        default=8.0,
        gt=0,
        le=1e9,
        description="largest magnitude of an entry of an update; largest adaptive clip",
    )
    min_clients: int = Field(
        default=3,
        ge=1,
        le=10_000_000,
        description="fewest clients in a round's sum; a round with fewer is aborted before it is sent",
    )
    roster: Annotated[str, UserPath] = Field(
        default="", description="file of all ranks' public keys; empty = keys are made at start and not authenticated"
    )
    key: Annotated[str, UserPath] = Field(
        default="", description="file of this rank's private key; {rank} in it stands for the rank"
    )


class AdaptiveClipSection(Section):
    """The clip of client-level privacy, as a quantile of the updates' norms."""

    enabled: bool = Field(
        default=False,
        description="clip at a quantile of the updates' norms, estimated privately; at most secure_aggregation.bound",
    )
    quantile: float = Field(
        default=0.5, gt=0, lt=1, description="fraction of the clients whose updates are not clipped"
    )
    lr: float = Field(default=0.2, gt=0, le=1e9, description="learning rate of the clip; 0.2 as in the paper")


class PrivacyAccountSection(Section):
    """This rank's own account of what was released about its clients, over runs."""

    dir: Annotated[str, UserPath] = Field(
        default="",
        description="folder for this rank's record of releases, over runs; {rank} in it stands for the rank; "
        "empty = no account",
    )
    key: Annotated[str, UserPath] = Field(
        default="", description="file of the private key that signs the record (fedddp keygen); {rank} as in dir"
    )
    epsilon: Annotated[float | None, Off] = Field(
        default=None,
        gt=0,
        le=1e9,
        description="this rank's own limit, over runs; a run whose rounds would exceed it is refused",
    )
    delta: Annotated[float | None, Off] = Field(
        default=None, gt=0, lt=1, description="delta of the limit (default: privacy.delta)"
    )


class PrivacySection(Section):
    """What leaves a rank: guard, differential privacy, secure aggregation."""

    guard: bool = Field(default=False, description="refuse messages that the configured protocol does not need")
    trust_network: bool = Field(default=False, description="do not warn that a run spans hosts without encryption")
    level: Literal["none", "example", "client"] = Field(
        default="none",
        description="unit of differential privacy: an example (DP-SGD on the client) or a "
        "client (DP-FedAvg); none = off",
    )
    clip: float = Field(
        default=1.0, gt=0, le=1e9, description="C, largest L2 norm of an example's gradient or client's update"
    )
    noise_multiplier: Annotated[float | None, Off] = Field(
        default=None, ge=0, le=1e9, description="sigma, the noise's standard deviation in units of clip"
    )
    target_epsilon: Annotated[float | None, Off] = Field(
        default=None,
        gt=0,
        le=1e9,
        description="stop before the round that would exceed it; without noise_multiplier, sigma is computed from it",
    )
    delta: float = Field(default=1e-5, gt=0, lt=1, description="delta of (epsilon, delta)-differential privacy")
    mechanism: Literal["gaussian", "tree", "banded_mf"] = Field(
        default="gaussian",
        description="noise of client level: gaussian is independent, for cohorts drawn in secret; tree (DP-FTRL) and "
        "banded_mf are correlated over rounds, for cohorts in a fixed order",
    )
    bands: int = Field(
        default=0,
        ge=0,
        le=1_000_000,
        description="bands of banded_mf, at most N / m; 1 = independent noise; 0 = N / m, but no more than 32",
    )
    accountant: Literal["prv", "rdp"] = Field(default="prv", description="how epsilon is composed; prv is tighter")
    randomness: Literal["secret", "seeded"] = Field(
        default="secret",
        description="randomness of cohorts, batches and noise: seeded is reproducible, for "
        "tests, and guarantees nothing",
    )
    equal_work: bool = Field(
        default=False,
        description="each rank trains the same number of clients in every round, some for nothing, so that time does "
        "not tell how many were drawn",
    )
    adaptive_clip: AdaptiveClipSection = AdaptiveClipSection()
    account: PrivacyAccountSection = PrivacyAccountSection()
    secure_aggregation: SecureAggregationSection = SecureAggregationSection()


class TelemetrySection(Section):
    """What is shown while a run goes on."""

    tensorboard: bool = Field(default=True, description="write TensorBoard events")
    loggers: tuple[str, ...] = Field(
        default=(), description="further loggers: wandb, mlflow, or package.module:Class of your own"
    )
    progress: Literal["auto", "bar", "lines", "off"] = Field(
        default="auto", description="auto = a bar on a terminal, else lines"
    )


class Config(Section):
    """The configuration of one run."""

    run: RunSection = RunSection()
    data: DataSection = DataSection()
    model: Annotated[
        ModelFactory,
        Choice(MODELS, {"name": "cnn"}, wrap=ImportedModule),
        Field(description="the model that all clients train"),
    ] = CNN()
    task: Annotated[
        TaskFactory, Choice(TASKS, {"name": "classification"}), Field(description="what is learned and measured")
    ] = Classification()
    loss: Annotated[
        Loss, Choice(LOSSES, {"name": "auto"}), Field(description="the loss of an example; auto = as fits the task")
    ] = Natural()
    client: ClientSection = ClientSection()
    cohort: CohortSection = CohortSection()
    algorithm: Annotated[
        Algorithm,
        Choice(ALGORITHMS, {"name": "fedavg"}),
        Field(description="the federated algorithm, on clients and server"),
    ] = FedAvg()
    aggregation: AggregationSection = AggregationSection()
    attack: Annotated[
        Attack, Choice(ATTACKS, {"name": "none"}), Field(description="what Byzantine clients do, in a simulation")
    ] = NoAttack()
    evaluate: EvaluateSection = EvaluateSection()
    checkpoint: CheckpointSection = CheckpointSection()
    privacy: PrivacySection = PrivacySection()
    telemetry: TelemetrySection = TelemetrySection()
