"""A party's privacy account in a run: what the run adds to its record, and the party's own limit."""

import hashlib
import json
import logging

from ..checkpoints.account import AccountError, Record, Run
from ..checkpoints.lock import Busy
from ..checkpoints.saved import fixed
from ..comm import Comm
from ..comm.world import rank_path
from ..config import flatten, to_dict
from ..errors import UsageError
from ..privacy import Budget, Composition, compose_runs, covered, merged
from ..sampling import residents
from ..secure import IdentityError
from .levels import level_for
from .load import LOCAL
from .prepared import Prepared

log = logging.getLogger("fedddp")

NAMED = 3
"""Number of runs that a refusal names: those that cost most."""


class Account:
    """What one rank counts for itself: the releases about its own clients, over runs.

    At client level that is every release, whoever was drawn; at example level those of the client that spent most. The
    planned rounds are checked at start, so that no run has to stop in the middle because of one party's limit.
    """

    def __init__(self, p: Prepared, record: Record) -> None:
        place, config = p.place, p.config
        entries = {k: v for k, v in fixed(flatten(to_dict(config))).items() if k not in LOCAL}
        self._config, self._record = config, record
        self._digest = hashlib.sha256(json.dumps(entries, default=str).encode()).hexdigest()
        self._own = residents(p.data.num_clients, place.rank, place.world_size)
        self._delta = config.privacy.account.delta or config.privacy.delta
        self._run: Run = ("", self._digest)
        self._lost = 0  # releases that the record has and the run's own count has not
        self._planned: Composition = ()

    def check_level(self) -> None:
        """Raise UsageError if the record is of another level: what hides an example and a client does not add up."""
        before, now = self._record.history.level, self._config.privacy.level
        if before not in ("", now):
            raise UsageError(
                f"privacy.account.dir={self._config.privacy.account.dir!r}: the record is of privacy.level={before}, "
                f"and epsilons of different units do not add up; name another folder for privacy.level={now}",
                code="account-level",
            )

    def plan(self, budget: Budget, rounds: range, name: str = "") -> None:
        """Find where the record of the run stands, and refuse ``rounds`` that would exceed the limit.

        Releases that the record has, and ``budget`` does not know of, stay counted: those of a round that was recorded
        and not finished, of a run folder that was deleted, or set back to an earlier state.

        Args:
            budget: what the run has spent so far.
            rounds: those to come, 0-based.
            name: the name of the run folder; empty for a run that is new.

        Raises:
            UsageError: names what was spent by which runs, what the run would add, and how many rounds fit.
        """
        history, self._run = self._record.history, (name, self._digest)
        recorded, known = history.releases.get(self._run, 0), budget.released
        self._lost = max(0, recorded - known)
        if not _all_covered(history.spent.get(self._run, ()), budget.composition(self._own, lost=self._lost)):
            self._lost = recorded
        if self._lost:
            log.warning(
                "%s has %d release(s) of %s that its run folder does not count; they stay counted here",
                self._record.path,
                self._lost,
                name,
            )
        planned = level_for(self._config.privacy).planned

        def after(n: int) -> Composition:
            coming = planned(self._config, range(rounds.start, rounds.start + n))
            return budget.composition(self._own, coming, self._lost)

        self._planned = after(len(rounds))
        limit, total = self._config.privacy.account.epsilon, self._total(self._planned)
        if limit is None or total <= limit or not rounds:
            if name:
                told = f"epsilon {total:.4g} at delta {self._delta:g}" + (f" of {limit:g} allowed" if limit else "")
                log.info("%s: all runs and the %d rounds to come: %s", self._record.path, len(rounds), told)
            return
        least, most = 0, len(rounds)  # rounds that fit, and that do not
        while most - least > 1:
            middle = (least + most) // 2
            least, most = (middle, most) if self._total(after(middle)) <= limit else (least, middle)
        target = self._config.privacy.target_epsilon
        fewer = f"use --run.rounds={rounds.start + least}, " if least and target is None else ""
        less = "more noise" if target is None else "a smaller privacy.target_epsilon"
        raise UsageError(
            f"privacy.account.epsilon={limit:g}: {self._spent()}; the {len(rounds)} rounds to come of this run would "
            f"make it {total:.4g}; {fewer}{less}, or a higher limit",
            code="account-epsilon",
        )

    def append(self, budget: Budget, round: int) -> None:
        """Record a release before it happens.

        Raises:
            UsageError: it was not planned (`Federation.until`), and exceeds the limit.
            WriteError: it cannot be recorded.
        """
        spent, limit = budget.composition(self._own, lost=self._lost), self._config.privacy.account.epsilon
        if limit is not None and not _all_covered(spent, self._planned) and self._total(spent) > limit:
            raise UsageError(
                f"privacy.account.epsilon={limit:g}: the run stops before round {round + 1}, which exceeds it"
            )
        release = budget.released + self._lost
        self._record.append(self._run, release, self._config.privacy.level, round, spent)

    def release(self) -> None:
        """Let other runs write the record."""
        self._record.release()

    def _total(self, mine: Composition) -> float:
        """Epsilon of all other runs and ``mine``, for the client or example that they cost most."""
        spent = self._record.history.spent
        return self._epsilon(list((spent | {self._run: merged(spent.get(self._run, ()), mine)}).values()))

    def _spent(self) -> str:
        """What was spent and by which runs, in words."""
        runs = self._record.history.spent
        each = {run: self._epsilon([released]) for run, released in runs.items()}
        first = sorted(each, key=lambda run: -each[run])
        named = [f"{run[0]} {each[run]:.4g}" for run in first[:NAMED]] + ["..."] * (len(first) > NAMED)
        by = f" by {len(first)} run(s) ({', '.join(named)})" if first else ""
        return f"epsilon {self._epsilon(list(runs.values())):.4g} at delta {self._delta:g} was spent{by}"

    def _epsilon(self, runs: list[Composition]) -> float:
        return compose_runs(runs, self._delta, self._config.privacy.accountant)


def opened(p: Prepared) -> Account:
    """Return this rank's account, its record checked and locked.

    The rounds of a run that is not resumed are checked against the limit here, before the process group starts.

    Raises:
        UsageError: the record or its key cannot be used, another run writes it, or the run would exceed the limit.
    """
    keys, place = p.config.privacy.account, p.place
    front = f"privacy.account.dir={keys.dir!r}: "
    try:
        account = Account(p, Record(rank_path(keys.dir, place.rank), rank_path(keys.key, place.rank)))
    except IdentityError as error:
        raise UsageError(f"privacy.account.key={keys.key!r}: {error}", code="account-key") from None
    except AccountError as error:
        raise UsageError(f"{front}{error}", code="account-changed") from None
    except Busy as error:
        remedy = "wait for it or stop it, and give each rank a folder of its own ({rank} stands for the rank)"
        raise UsageError(f"{front}{error}; {remedy}", code="account-busy") from None
    except OSError as error:
        raise UsageError(f"{front}no account can be written there ({error}); choose another folder") from None
    try:
        account.check_level()
        if p.config.run.resume == "never" and not (place.may_be_a_restart and place.launch):
            account.plan(level_for(p.config.privacy)(p, Comm.alone()).budget(None), range(p.config.run.rounds))
    except BaseException:
        account.release()
        raise
    return account


def _all_covered(segments: Composition, by: Composition) -> bool:
    return all(covered(segment, by) for segment in segments)
