"""Each rank's own account: it adds up over runs, is never behind, and its limit ends a run on all ranks alike."""

import json
import os
import signal

import pytest

from fedddp.aggregation.pipeline import Inbox
from fedddp.checkpoints.account import Record, read
from fedddp.checkpoints.durable import WriteError
from fedddp.checkpoints.spend_file import SpendFile
from fedddp.comm import Comm, CommError, Place
from fedddp.config import UsageError, build
from fedddp.federation import federate
from fedddp.privacy import compose_runs, covered
from fedddp.privacy.budget import undominated
from fedddp.secure import Identity
from fedddp.setup.account import opened
from fedddp.setup.assemble import connect
from fedddp.setup.levels import LEVELS
from fedddp.setup.load import prepare
from fedddp.setup.noise import example_level_work, participations
from fedddp.setup.resolve import resolve
from fedddp.types import Cohort
from tests.helpers.distributed import configured, experiment_of, train

CLIENT = {"level": "client", "noise_multiplier": 2.0, "delta": 1e-2}
EXAMPLE = {"level": "example", "noise_multiplier": 1.0}
MASKED = {"secure_aggregation": {"enabled": True, "min_clients": 1}, "guard": True}


def table_of(tmp_path, name="run", rounds=2, resume="never", privacy=CLIENT, **account):
    for rank in range(4):
        if not (key := tmp_path / f"rank-{rank}.key").exists():
            Identity.new().save(key)
    keys = {"dir": str(tmp_path / "account" / "{rank}"), "key": str(tmp_path / "rank-{rank}.key"), **account}
    return configured(
        tmp_path,
        run={"name": name, "rounds": rounds, "resume": resume},
        data__partition={"name": "quantity", "num_clients": 4},
        cohort={"size": 2},
        checkpoint={"every": 1},
        evaluate={"every": 0},
        privacy={**privacy, "account": keys},
    )


def account_of(tmp_path, rank):
    return read(tmp_path / "account" / str(rank), tmp_path / f"rank-{rank}.key")


def times(n):
    """What ``n`` rounds of `table_of` are at client level: 2 of 4 clients are drawn."""
    return ((2.0, 0.5, n),)


def epsilon_of(*counts):
    return compose_runs([times(n) for n in counts], CLIENT["delta"])


@pytest.mark.parametrize("privacy", [CLIENT, CLIENT | MASKED], ids=["plain", "masked"])
def test_runs_add_up_on_every_rank(run_ranks, tmp_path, privacy):
    for name, rounds in (("one", 2), ("two", 1)):
        run_ranks(train, 3, table_of(tmp_path, name, rounds, privacy=privacy))
    for rank in range(3):
        history = account_of(tmp_path, rank)
        assert {name: spent for (name, _), spent in history.spent.items()} == {"one": times(2), "two": times(1)}
        assert (history.lines, history.level) == (3, "client")


def test_at_example_level_the_worst_of_a_ranks_own_clients_counts(run_ranks, tmp_path):
    table = table_of(tmp_path, rounds=3, privacy=EXAMPLE)
    run_ranks(train, 2, table)
    place = Place(0, 2, 0, 2)
    p = prepare(resolve(build(table | {"run": {**table["run"], "name": "again"}}), place), place)
    q, steps = (x.numpy() for x in example_level_work(p.config, p.data.sizes))
    drawn = participations(p.config, range(3)).numpy()
    assert 0 < drawn.min() < drawn.max()  # so that own clients differ from all, and in number
    own = {rank: undominated(q[rank::2], (steps * drawn)[rank::2]) for rank in range(2)}
    assert own[0] != own[1]
    for rank in range(2):
        (spent,) = account_of(tmp_path, rank).spent.values()
        for pair in own[rank]:
            assert (1.0, *pair) in spent
        assert all(covered(segment, [(1.0, *pair) for pair in own[rank]]) for segment in spent)


def test_under_correlated_noise_a_client_counts_once_in_so_many_releases(run_ranks, tmp_path):
    """Half of the clients in each round, in a fixed order: of three releases a client takes part in two at most."""
    tree = CLIENT | {"mechanism": "tree"}
    run_ranks(train, 2, table_of(tmp_path, rounds=1, privacy=tree))
    run_ranks(train, 2, table_of(tmp_path, rounds=3, resume="auto", privacy=tree))
    for rank in range(2):
        assert list(account_of(tmp_path, rank).spent.values()) == [((2.0, 1.0, 2),)]


def refusal(comm, table, limited, rounds=None):
    """Why this rank's run ended; only the ``limited`` ranks have the limit."""
    account = table["privacy"]["account"]
    mine = {**account, "epsilon": account["epsilon"] if comm.rank in limited else None}
    table = table | {"privacy": {**table["privacy"], "account": mine}}
    try:
        experiment = experiment_of(comm, table)
        with experiment.ending():
            federate(experiment.federation.until(rounds or table["run"]["rounds"]), experiment.server)
        experiment.close()
    except UsageError as error:
        return error.code, str(error)
    except CommError as error:
        return "lost", str(error)
    return "done", ""


@pytest.mark.parametrize(("ranks", "limited"), [(2, (0,)), (2, (1,)), (3, (1, 2))])
def test_one_partys_limit_ends_a_new_run_before_anything_is_released(run_ranks, tmp_path, ranks, limited):
    run_ranks(train, ranks, table_of(tmp_path, "first", 2))
    limit = (epsilon_of(2, 3) + epsilon_of(2, 4)) / 2  # three more rounds fit, four do not
    told = run_ranks(refusal, ranks, table_of(tmp_path, "second", 5, epsilon=limit), limited)
    for rank, (code, line) in enumerate(told):
        assert code == ("account-epsilon" if rank in limited else "lost")
        if rank in limited:
            assert line.startswith(f"privacy.account.epsilon={limit:g}: epsilon {epsilon_of(2):.4g} at delta 0.01")
            assert f"by 1 run(s) (first {epsilon_of(2):.4g})" in line
            assert f"the 5 rounds to come of this run would make it {epsilon_of(2, 5):.4g}; use --run.rounds=3," in line
    assert all(account_of(tmp_path, rank).lines == 2 for rank in range(ranks))
    told = run_ranks(refusal, ranks, table_of(tmp_path, "second", 3, epsilon=limit), limited)
    assert told == [("done", "")] * ranks
    assert all(account_of(tmp_path, rank).lines == 5 for rank in range(ranks))


@pytest.mark.parametrize("ranks", [2, 3])
def test_more_rounds_than_the_limit_allows_are_refused_on_resume_and_the_others_hear_why(run_ranks, tmp_path, ranks):
    limit = (epsilon_of(3) + epsilon_of(4)) / 2
    assert run_ranks(refusal, ranks, table_of(tmp_path, rounds=2, epsilon=limit), (1,)) == [("done", "")] * ranks
    told = run_ranks(refusal, ranks, table_of(tmp_path, rounds=6, resume="auto", epsilon=limit), (1,))
    assert told[1][0] == "account-epsilon"
    assert "the 4 rounds to come" in told[1][1]
    assert "use --run.rounds=3," in told[1][1]
    others = [line for rank, (_, line) in enumerate(told) if rank != 1]
    assert any("rank 1 is missing, last seen in 'plan its privacy account'" in line for line in others)
    told = run_ranks(refusal, ranks, table_of(tmp_path, rounds=3, resume="auto", epsilon=limit), (0, 1))
    assert told == [("done", "")] * ranks  # a limit may change on resume: rank 0 had none before
    for rank in range(ranks):
        assert list(account_of(tmp_path, rank).spent.values()) == [times(3)]  # nothing twice


def test_a_run_that_was_not_planned_stops_before_the_round_that_exceeds_the_limit(run_ranks, tmp_path):
    """`Federation.until`: three rounds were planned, nine are asked for, four fit."""
    limit = (epsilon_of(4) + epsilon_of(5)) / 2
    told = run_ranks(refusal, 2, table_of(tmp_path, rounds=3, epsilon=limit), (1,), 9)
    assert told[1][0] == ""
    assert "stops before round 5" in told[1][1]
    assert told[0][0] == "lost"
    assert list(account_of(tmp_path, 1).spent.values()) == [times(4)]


def killed(comm, table, round, rank, where):
    """Die of SIGKILL in a round: before rank 0 has written the release down, or when all have and none is sent."""
    experiment = experiment_of(comm, table)
    owner, name = {"spend": (SpendFile, "append"), "release": (Inbox, "mean")}[where]
    really, seen = getattr(owner, name), []

    def die(*args):
        seen.append(args)
        if len(seen) == round and comm.rank == rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*args)

    setattr(owner, name, die)
    try:
        with experiment.ending():
            federate(experiment.federation, experiment.server)
    except CommError:
        return "lost"


def started(comm, table):
    """Train to the end; the number of rounds that were done at start."""
    experiment = experiment_of(comm, table)
    experiment.train()
    return experiment.server.round


def test_a_kill_between_record_and_release_counts_the_round_twice_and_never_less(run_ranks, tmp_path):
    """Rank 0 is killed in round 2, recorded and not released: it is done again, as the run's own count has it."""
    assert run_ranks(killed, 2, table_of(tmp_path, rounds=3), 2, 0, "release", lost=(0,))[1] == "lost"
    assert account_of(tmp_path, 0).spent == account_of(tmp_path, 1).spent
    assert list(account_of(tmp_path, 0).spent.values()) == [times(2)]
    done = run_ranks(started, 2, table_of(tmp_path, rounds=3, resume="auto"))[0]  # 0, if the checkpoint was lost too
    last = json.loads((tmp_path / "runs" / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert last["epsilon"] == pytest.approx(epsilon_of(2 + 3 - done))
    for rank in range(2):
        assert list(account_of(tmp_path, rank).spent.values()) == [times(2 + 3 - done)]


def test_a_release_that_rank_0_does_not_know_of_stays_in_the_others_records(run_ranks, tmp_path):
    """Rank 0 is killed before it counts round 2, rank 1 has recorded it: from then on it is one ahead."""
    assert run_ranks(killed, 2, table_of(tmp_path, rounds=3), 2, 0, "spend", lost=(0,))[1] == "lost"
    assert list(account_of(tmp_path, 0).spent.values()) == [times(1)]
    assert list(account_of(tmp_path, 1).spent.values()) == [times(2)]
    done = run_ranks(started, 2, table_of(tmp_path, rounds=3, resume="auto"))[0]  # 0, if the checkpoint was lost too
    assert list(account_of(tmp_path, 0).spent.values()) == [times(1 + 3 - done)]
    assert list(account_of(tmp_path, 1).spent.values()) == [times(2 + 3 - done)]


def test_a_run_folder_that_was_deleted_does_not_take_its_releases_with_it(run_ranks, tmp_path):
    run_ranks(train, 1, table_of(tmp_path, rounds=2))
    (tmp_path / "runs").rename(tmp_path / "gone")
    run_ranks(train, 1, table_of(tmp_path, rounds=3))
    assert list(account_of(tmp_path, 0).spent.values()) == [times(5)]
    run_ranks(train, 1, table_of(tmp_path, rounds=4, resume="auto"))  # and goes on from there
    assert list(account_of(tmp_path, 0).spent.values()) == [times(6)]


def test_at_example_level_a_run_folder_set_back_counts_again(run_ranks, tmp_path):
    """Its own clients took part in fewer rounds than the record says: all that was recorded is added."""
    run_ranks(train, 1, table_of(tmp_path, rounds=3, privacy=EXAMPLE))
    (before,) = account_of(tmp_path, 0).spent.values()
    (tmp_path / "runs").rename(tmp_path / "gone")
    run_ranks(train, 1, table_of(tmp_path, rounds=1, privacy=EXAMPLE))
    (after,) = account_of(tmp_path, 0).spent.values()
    assert all(covered(segment, after) for segment in before)
    assert compose_runs([after], 1e-5, "rdp") > compose_runs([before], 1e-5, "rdp")


def test_a_run_that_counts_other_clients_than_were_recorded_hides_nothing(tmp_path):
    """As many releases as the record has, but client 0, whose they are, took part in none: the next is its second."""
    place = Place()
    p = prepare(resolve(build(table_of(tmp_path, rounds=3, privacy=EXAMPLE)), place), place)
    account, (q, steps) = opened(p), example_level_work(p.config, p.data.sizes)
    for others, mine in (((), 1), ((1,), 2)):
        budget = LEVELS["example"](p, Comm.alone()).budget(None)
        if others:
            budget.spend(Cohort(0, others, 4))
        account.plan(budget, range(2, 3), "run")
        budget.account = account
        budget.spend(Cohort(1, (0,), 4))
        (spent,) = account_of(tmp_path, 0).spent.values()
        assert covered((1.0, float(q[0]), mine * int(steps[0])), spent)
    account.release()


def leaves(comm, table, victim):
    """Survivors train on without the ``victim``, which is killed when it trains in round 2."""
    experiment = experiment_of(comm, table)
    regroup, enter = comm.regroup, comm.enter
    comm.regroup = lambda: regroup(1.25)

    def watched(phase):
        if phase == "train in round 2" and comm.rank == victim:
            os.kill(os.getpid(), signal.SIGKILL)
        enter(phase)

    comm.enter = watched
    return federate(experiment.federation, experiment.server).round


def test_the_record_of_a_lost_party_has_what_it_took_part_in(run_ranks, tmp_path):
    table = table_of(tmp_path, rounds=3, privacy=CLIENT | MASKED)
    assert run_ranks(leaves, 4, table, 2, timeout=3.0, lost=(2,)) == [3, 3, None, 3]
    for rank, rounds in enumerate((3, 3, 1, 3)):
        assert list(account_of(tmp_path, rank).spent.values()) == [times(rounds)]


def full(comm, table):
    """A run whose record cannot be written in round 2 of rank 1, and what was released by then."""
    experiment, released, mean, append = experiment_of(comm, table), [], Inbox.mean, Record.append
    Inbox.mean = lambda inbox: released.append(mean(inbox)) or released[-1]

    def no_space(record, run, release, *rest):
        if comm.rank == 1 and release == 2:
            raise WriteError("no space left")
        append(record, run, release, *rest)

    Record.append = no_space
    try:
        with experiment.ending():
            federate(experiment.federation, experiment.server)
    except (WriteError, CommError) as error:
        return type(error).__name__, len(released)


def test_a_record_that_cannot_be_written_ends_the_run_before_the_release(run_ranks, tmp_path):
    assert run_ranks(full, 2, table_of(tmp_path)) == [("LostRank", 1), ("WriteError", 1)]
    assert [account_of(tmp_path, rank).lines for rank in range(2)] == [2, 1]


def code_of(comm, table):
    with pytest.raises(UsageError) as caught:
        train(comm, table)
    assert "\n" not in str(caught.value)
    return caught.value.key, caught.value.code


def test_what_cannot_be_kept_is_refused_before_the_ranks_meet(run_ranks, tmp_path):
    run_ranks(train, 1, table_of(tmp_path, "one", 1))
    held = Record(tmp_path / "account" / "0", tmp_path / "rank-0.key")
    assert run_ranks(code_of, 1, table_of(tmp_path)) == [("privacy.account.dir", "account-busy")]
    held.release()
    assert run_ranks(code_of, 1, table_of(tmp_path, privacy=EXAMPLE)) == [("privacy.account.dir", "account-level")]
    other = table_of(tmp_path, key=str(tmp_path / "none.key"))
    assert run_ranks(code_of, 1, other) == [("privacy.account.key", "account-key")]
    other = table_of(tmp_path, key=str(tmp_path / "rank-1.key"))
    assert run_ranks(code_of, 1, other) == [("privacy.account.dir", "account-changed")]
    path = tmp_path / "account" / "0" / "account.jsonl"
    path.write_text(path.read_text().replace("2.0", "9.0"))
    assert run_ranks(code_of, 1, table_of(tmp_path)) == [("privacy.account.dir", "account-changed")]
    (tmp_path / "file").write_text("")
    assert run_ranks(code_of, 1, table_of(tmp_path, dir=str(tmp_path / "file"))) == [("privacy.account.dir", "")]
    assert not (tmp_path / "runs" / "run").exists()


def test_a_run_that_ended_lets_the_next_in_its_process_write(tmp_path):
    for name in ("one", "two"):
        place = Place()
        experiment = connect(prepare(resolve(build(table_of(tmp_path, name, 1)), place), place))
        _, summary = experiment.train()
        assert not experiment.federation.budget.account._record._lock.held
        assert summary["epsilon_by_delta"]["0.0001"] == pytest.approx(compose_runs([times(1)], 1e-4))
        assert summary["zcdp_rho"] is None
    assert list(account_of(tmp_path, 0).spent.values()) == [times(1), times(1)]
