"""Write the commit log of a run that may lose ranks, ``commits.jsonl``: from whom the model of each round is."""

import json
from collections.abc import Sequence

from torch import Tensor

from ..checkpoints.run_folder import RunFolder
from .telemetry import Metrics, RoundRecord

COMMITS = "commits.jsonl"


class Commits:
    """Appends a line a round: the epoch, the ranks that were left, and the clients in the mean with their examples.

    One process that trains the clients of each line, with ``aggregation.sum=exact``, gets the same model bit for bit.

    Args:
        folder: of the run.
        epoch: how often it was decided who goes on.
        ranks: of this epoch, by their numbers at first.
        sizes: the number of examples of each client, [N].
    """

    def __init__(self, folder: RunFolder, epoch: int, ranks: Sequence[int], sizes: Tensor) -> None:
        self._path, self._of_all, self._sizes = folder.path / COMMITS, {"epoch": epoch, "ranks": list(ranks)}, sizes

    def round(self, record: RoundRecord) -> None:
        clients = {k: int(self._sizes[k]) for k in record.report.losses or ()}
        line = {"round": record.metrics["round"], **self._of_all, "clients": clients}
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def close(self, summary: Metrics | None) -> None:
        pass
