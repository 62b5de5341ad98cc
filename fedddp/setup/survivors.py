"""Train to the end with the ranks that are left, where the launcher says who goes on (`fedddp launch --min-ranks`).

A round is a transaction. Whoever loses a rank asks to go on, at whatever point of whatever round it is. The ranks that
are left then assemble the federation anew, as a restart does but in the same processes: the lowest of them is rank 0,
opens the run folder, cuts it to its own last finished round that is on record there, and sends that round's model to
the others, whether these have finished a round less or more. Where clients have states, which a lost rank took along,
that is the last checkpoint. So nothing of an unfinished round is left; it is trained again, and gives the same.
"""

import logging
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ..checkpoints.run_folder import read_lines
from ..comm import LostRank
from ..comm.member import Member
from ..telemetry import Metrics
from ..types import ServerState
from .assemble import connect
from .experiment import Experiment
from .load import prepare
from .prepared import InMemory, Prepared

log = logging.getLogger("fedddp")


class Survivors:
    """One rank's part in a run that may lose ranks.

    Args:
        prepared: the run.
        member: this process's part in deciding who goes on; None where the first loss ends the run.

    Attributes:
        prepared: the run, as it is prepared for the ranks that are left.
        experiment: the assembled one; None before.
    """

    def __init__(self, prepared: Prepared, member: Member | None) -> None:
        self.prepared, self._member = prepared, member
        self.experiment: Experiment | None = None
        self._finished: Sequence[ServerState] = ()

    def train(self) -> tuple[Experiment, Metrics]:
        """Train to the last round; the last experiment, and the content of ``summary.json``.

        Raises:
            CommError: a rank was lost, and the others cannot go on without it.
        """
        if self._member is None:
            self.experiment = connect(self.prepared)
            return self.experiment, self.experiment.train()[1]
        while True:
            running = None
            try:
                self.experiment = running = self._connect(self._member)
                return running, running.train((LostRank,))[1]
            except LostRank as loss:
                reason = str(loss)  # the exception itself holds on to the round's tensors
            self._regroup(self._member, running, reason)

    def _connect(self, member: Member) -> Experiment:
        comm = member.connect(self.prepared.device)
        try:
            return replace(connect(self.prepared, comm=comm), owns_comm=True)
        except BaseException:
            comm.leave()
            raise

    def _regroup(self, member: Member, running: Experiment | None, reason: str) -> None:
        """Take the place of this rank among those that are left, and prepare the run for it."""
        log.debug("%s", reason)
        if running:
            running.federation.comm.leave()
        with running.ending() if running else nullcontext():  # where nobody goes on, the run ends here
            member.regroup()
        if running:
            self._finished = running.suspend()
        config = self.prepared.config
        if self.experiment:  # by its path: a folder with a summary would be taken for one of another run
            folder = self.experiment.federation.checkpoints.run_folder
            config = config.model_copy(update={"run": config.run.model_copy(update={"resume": str(folder)})})
        p = replace(prepare(config, member.place), config=self.prepared.config)
        state = newest(self._finished, p.output.folder.path) if p.output else None
        if p.output and state and (p.saved is None or p.saved.round < state.round):
            p = replace(p, output=replace(p.output, saved=InMemory(state)))
        self.prepared = p


def newest(finished: Iterable[ServerState], run_folder: Path) -> ServerState | None:
    """The last of the ``finished`` states whose round, with all before it, is on record; None if there is none."""
    recorded = 0
    for line in read_lines(run_folder / "metrics.jsonl"):
        recorded += line.get("round") == recorded + 1
    return max((state for state in finished if state.round <= recorded), key=lambda s: s.round, default=None)
