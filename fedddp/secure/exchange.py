"""Secure aggregation over the ranks of a run: a Party driven through Comm's collectives.

A round is four gatherings of signed messages and one integer all_reduce, purpose "aggregate". When a rank is lost the
survivors regroup, tell each other where they stand ("secure status"), and go on as recovery.py says.
"""

import os
from collections.abc import Callable

from torch import Tensor

from ..comm import Comm, CommError, LostRank, Purpose
from ..comm.world import rank_path
from ..types import ServerState
from .attempt import OtherModel
from .envelope import NO_STATE, hashing
from .hello import HELLO_SIZE, SIGNATURE, Greeting, Session
from .identity import Identity, Roster
from .party import Party, TooFewParties
from .recovery import Step

PURPOSE = {
    Step.KEYS: Purpose.SECURE_KEYS,
    Step.SHARES: Purpose.SECURE_SHARES,
    Step.COMMIT: Purpose.SECURE_COMMIT,
    Step.REVEAL: Purpose.SECURE_REVEAL,
}


def identity_of(key: str, rank: int) -> Identity:
    """The identity in file ``key``, where "{rank}" stands for the rank; a new one where no file is named."""
    return Identity.load(rank_path(key, rank)) if key else Identity.new()


class SecureExchange:
    """Sums that only the sum can be read of. Every rank makes one, and calls `sum_` for the same rounds.

    Making it is the session's start: two gatherings. ``roster``: everybody's public keys; None trusts whoever comes
    (a simulation: `session.authenticated` is False). ``configuration``: bytes that must be equal on all ranks.
    ``min_clients``: fewest clients that may contribute to a sum, or 0 to leave them uncounted.
    Raises HelloError, on all ranks alike unless this rank's own key does not fit. The last two are for tests.
    """

    def __init__(
        self,
        comm: Comm,
        identity: Identity,
        roster: Roster | None,
        configuration: bytes,
        *,
        min_clients: int = 0,
        party: Callable[[Session], Party] | None = None,
        random_bytes: Callable[[int], bytes] = os.urandom,
    ) -> None:
        self._comm = comm
        self.session = greet(comm, identity, roster, configuration, random_bytes)
        keys = {"min_clients": min_clients, "random_bytes": random_bytes}
        self.party = party(self.session) if party else Party(self.session, **keys)
        self._counts = min_clients > 0
        if self.session.authenticated:
            comm.sign_members(self.session)
        self._state: Callable[[], bytes] = lambda: NO_STATE

    def begin(self, server: ServerState) -> None:
        """A round begins, from a model that must be the same on all ranks: hash it beside what follows until `sum_`."""
        self._state = hashing(server)

    def sum_(self, buffer: Tensor, round: int, contributors: int = 0) -> Tensor:
        """Sum ``buffer`` [L] (int64 or int32, any device), in place and in its ring, over the ranks that take part.

        A rank with nothing to give passes zeros. ``contributors``: how many clients ``buffer`` is of. ``round`` grows
        from call to call. Raises RoundAborted, on every rank alike; ``buffer`` is then as it was, and the next can
        begin. Raises CommError when too few ranks are left, or when they have begun from different models; nothing
        masked has been sent then.
        """
        try:
            self.party.regrouped(self._comm.members, self._comm.epoch)
            self.party.begin(round, buffer.to("cpu"), self._state(), contributors if self._counts else 0)
            self._settled(self._run)
        except (TooFewParties, OtherModel) as error:
            raise CommError(str(error)) from None
        assert self.party.result is not None
        buffer.copy_(self.party.result)
        self.party.result = None
        return buffer

    def settle(self) -> None:
        """To be called by every rank after a `Comm.regroup` made elsewhere, before anything else is sent.

        A rank may have left the last round while another still needed its message: here it gives it once more.
        """
        self._settled(lambda: None, agree=True)

    def _settled(self, work: Callable[[], None], *, agree: bool = False) -> None:
        """Do ``work``; after the loss of a rank regroup, agree with the other survivors, and go on with it."""
        lost = False
        for _ in range(2 * self._comm.world_size + 2):
            try:
                if lost:
                    self._comm.regroup()
                if lost or agree:
                    self._agree()
                lost = agree = False
                return work()
            except LostRank:
                lost = True
        raise CommError("secure aggregation: ranks are lost again and again")

    def _run(self) -> None:
        party = self.party
        while party.step is not Step.IDLE:
            if party.sums:
                total = party.masked()
                party.summed(self._comm.all_reduce(total, Purpose.AGGREGATE))
            else:
                party.receive(self._comm.gather_bytes(party.message(), party.size, PURPOSE[party.step]))

    def _agree(self) -> None:
        """Where everybody stands, and what follows from it."""
        party, comm = self.party, self._comm
        party.regrouped(comm.members, comm.epoch)
        plan = party.follow(comm.gather_bytes(party.status(), party.status_size, Purpose.SECURE_STATUS))
        help_for_others = party.assistance(plan)
        if help_for_others:
            comm.gather_bytes(*help_for_others, PURPOSE[Step.REVEAL])
            party.assisted()


def greet(
    comm: Comm,
    identity: Identity,
    roster: Roster | None,
    configuration: bytes,
    random_bytes: Callable[[int], bytes] = os.urandom,
) -> Session:
    """Exchange hellos and confirmations. Raises HelloError."""
    greeting = Greeting(comm.rank, comm.world_size, identity, roster, configuration, random_bytes)
    session = greeting.meet(comm.gather_bytes(greeting.message, HELLO_SIZE, Purpose.SECURE_HELLO))
    session.check_confirmations(comm.gather_bytes(session.confirmation(), SIGNATURE, Purpose.SECURE_HELLO))
    return session
