"""The schema: every key of a run, its type, its default and its meaning."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..algorithms import ALGORITHMS, Algorithm, FedAvg
from ..choice import RULES, Choice
from ..data import DATASETS, PARTITIONS, Partitioner
from ..data.partition import IID
from ..models import CNN, MODELS, ImportedModule, ModelFactory
from ..optim import SGD, ClientOptimizer


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, arbitrary_types_allowed=True, **RULES)


class Run(Section):
    name: str = Field("", description="label of the run's folder; empty = <algorithm>-<data>-<model>")
    dir: str = Field("runs", min_length=1, description="parent of run folders")
    seed: int = Field(0, ge=0, description="every random choice derives from it")
    rounds: int = Field(10, ge=1, description="T, number of rounds")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto = cuda where there is one")
    backend: Literal["auto", "gloo", "nccl"] = Field("auto", description="auto = nccl where each rank has its own GPU")
    threads: int = Field(0, ge=0, description="CPU threads a rank; 0 = cores / local ranks (1 if aggregation is exact)")
    resume: str = Field("never", min_length=1, description="never, auto (the newest run of this name), or a run folder")
    timeout: float = Field(120.0, gt=0, description="seconds a collective may wait for a rank")


class Data(Section):
    name: str = Field("mnist-mini", description=f"{', '.join(DATASETS)}, or package.module:Class")
    root: str = Field("data", description="folder in torchvision's layout (mnist-mini and synthetic need none)")
    download: bool = Field(True, description="download what root does not hold, where the network allows")
    args: dict[str, Any] = Field({}, description="further arguments of the dataset, by name")
    partition: Annotated[Partitioner, Choice(PARTITIONS, {"name": "iid"})] = IID()


class Execution(Section):
    name: Literal["auto", "sequential"] = Field("auto", description="how a rank trains its clients")


class Client(Section):
    local_epochs: int = Field(1, ge=1, description="E, passes over a client's examples a round")
    batch_size: int = Field(10, ge=0, description="B; 0 = all of a client's examples")
    precision: Literal["float32", "float64"] = Field("float32", description="arithmetic of model and data")
    optimizer: ClientOptimizer = SGD()
    execution: Execution = Execution()


class Cohort(Section):
    fraction: float | None = Field(None, gt=0, le=1, description="C, share of the population in a round (default: all)")
    size: int | None = Field(None, ge=1, description="m, number of clients in a round; instead of fraction")

    @model_validator(mode="after")
    def _one_of(self) -> Cohort:
        if self.fraction is not None and self.size is not None:
            raise ValueError("fraction and size both say how many clients take part: give one of them")
        return self


class Aggregation(Section):
    sum: Literal["fast", "exact"] = Field(
        "fast", description="fast = the model's precision; exact = the same bits for any number of ranks"
    )


class Evaluate(Section):
    every: int = Field(1, ge=0, description="rounds between evaluations; 0 = only after the last")
    where: Literal["rank0", "sharded"] = Field("rank0", description="who evaluates: rank 0 on all cores, or all ranks")
    target_accuracy: float | None = Field(None, gt=0, le=1, description="stop when reached (default: off)")


class Checkpoint(Section):
    every: int = Field(1, ge=0, description="rounds between checkpoints; 0 = only when interrupted")
    keep: int = Field(3, ge=1, description="newest checkpoints kept, besides the best")


class Telemetry(Section):
    tensorboard: bool = Field(True, description="write TensorBoard events")
    progress: Literal["auto", "bar", "lines", "off"] = Field("auto", description="auto = a bar on a terminal, else lines")


class Config(Section):
    run: Run = Run()
    data: Data = Data()
    model: Annotated[ModelFactory, Choice(MODELS, {"name": "cnn"}, wrap=ImportedModule)] = CNN()
    client: Client = Client()
    cohort: Cohort = Cohort()
    algorithm: Annotated[Algorithm, Choice(ALGORITHMS, {"name": "fedavg"})] = FedAvg()
    aggregation: Aggregation = Aggregation()
    evaluate: Evaluate = Evaluate()
    checkpoint: Checkpoint = Checkpoint()
    telemetry: Telemetry = Telemetry()
