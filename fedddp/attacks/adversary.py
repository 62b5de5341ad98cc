"""Apply an attack to a run: choose the Byzantine clients, and change their examples, updates or columns."""

from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from torch import Tensor

from ..algorithms import Algorithm, Around, LocalTraining
from ..data import Dataset, Examples, Partition
from ..flat import FlatSpec
from ..rng import generator, numpy_generator
from ..types import ClientState, ClientUpdate, ServerState, Update
from .byzantine import Attack


@dataclass(frozen=True)
class Adversary:
    """An ``attack`` by the Byzantine ``clients``, the same on every rank and in every round."""

    attack: Attack
    clients: frozenset[int]
    seed: int

    @classmethod
    def drawn(cls, attack: Attack, population: int, seed: int) -> Self:
        """The adversary with ``attack.num_clients`` of ``population``, drawn from the seed."""
        if not attack.num_clients:
            return cls(attack, frozenset(), seed)
        draw = numpy_generator(seed, "byzantine").choice(population, attack.num_clients, replace=False)
        return cls(attack, frozenset(draw.tolist()), seed)

    def poisoned(self, dataset: Dataset, partition: Partition) -> tuple[Dataset, Partition]:
        """The data with Byzantine clients' examples as the attack changes them: copies behind the others, which nobody
        else owns. Of data that are divided over machines, those of this machine's clients.
        """
        x, y, order, starts = [dataset.train.x], [dataset.train.y], [partition.order], partition.starts.astype(np.int64)
        count, end = len(dataset.train), len(partition.order)
        for k in sorted(self.clients):
            rows = torch.from_numpy(partition.indices(k)).long()
            own = Examples(dataset.train.x[rows], dataset.train.y[rows])
            other = self.attack.examples(own, dataset.num_classes, generator(self.seed, "poison", k))
            if other is own or len(own) < partition.sizes[k]:
                continue
            x.append(other.x)
            y.append(other.y)
            order.append(np.arange(count, count + len(own)))
            starts[k] = end
            count, end = count + len(own), end + len(own)
        if len(x) == 1:
            return dataset, partition
        elsewhere = partition.starts + partition.sizes > len(partition.order)
        starts[elsewhere] = end  # behind what is here, as before
        train = Examples(torch.cat(x), torch.cat(y))
        return replace(dataset, train=train), replace(partition, order=np.concatenate(order), starts=starts)

    def without(self, partition: Partition) -> Partition:
        """``partition`` with nothing for the Byzantine clients."""
        sizes = partition.sizes.copy()
        sizes[sorted(self.clients)] = 0
        return replace(partition, sizes=sizes)

    def around(self, algorithm: Algorithm, spec: FlatSpec) -> Algorithm:
        """``algorithm`` on a model of ``spec``, with the Byzantine clients' updates as the attack changes them."""
        if not self.clients:
            return algorithm
        uploaded = algorithm.uploaded(spec)
        lengths = (uploaded.dim, uploaded.num_trainable)
        names = [name for name, length in algorithm.vectors(spec).items() if length in lengths]
        return Corrupted(algorithm, self, tuple(names))

    def tamper(self, x: Tensor, ids: Tensor) -> Tensor:
        """Columns ``x [m, c]`` of the clients ``ids [m]`` as the attack changes them before the rule gets them."""
        byzantine = torch.isin(ids, torch.tensor(sorted(self.clients), dtype=ids.dtype, device=ids.device))
        return self.attack.columns(x, byzantine) if byzantine.any() else x

    def __str__(self) -> str:
        listed = sorted(self.clients)
        shown = ", ".join(map(str, listed[:20])) + (", ..." if len(listed) > 20 else "")
        return f"{len(listed)} Byzantine clients" + (f": {shown}" if listed else "")


@dataclass(frozen=True)
class Corrupted(Around):
    """Any algorithm ``inner`` whose Byzantine clients change its vectors ``attacked`` before they upload them.

    These are as long as the model or its trainable part. A normaliser of length 1 stays honest: reversed along with
    what it divides, it would undo the attack.
    """

    adversary: Adversary
    attacked: tuple[str, ...]

    def client_update(self, server: ServerState, client: ClientState, local: LocalTraining) -> ClientUpdate:
        update, state, result = self.inner.client_update(server, client, local)
        streams = {
            row: generator(self.adversary.seed, "attack", local.round, k)
            for row, k in enumerate(local.ids)
            if k in self.adversary.clients
        }
        if not streams:
            return update, state, result
        vectors = dict(update.vectors)
        for name in self.attacked:
            vectors[name] = rows = vectors[name].clone()  # it may be the client's state too
            for row, stream in streams.items():
                rows[row] = self.adversary.attack.update(rows[row], stream)
        return Update(vectors, update.weight), state, result
