"""What network, processes and files of a run protect and what they do not, measured on this machine."""

import os
import socket
import stat
from argparse import Namespace
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from rich.table import Table

from ...comm import Place
from ...comm.world import is_loopback, rank_path, spans_hosts
from ...config import Config, build
from ...data import DATASETS, Parts
from ...data.parts import train_file
from ...errors import DONE, FAILED
from ...secure.identity import Identity, IdentityError, Roster
from ...telemetry import console
from ..outcome import asked
from . import bundle, network
from .finding import Finding
from .probe import Measured, listening, measure

TUNNEL = (
    "carry it in WireGuard (then GLOO_SOCKET_IFNAME=wg0 and MASTER_ADDR an address in it) or another encrypted "
    "network; in Kubernetes a NetworkPolicy that admits this job's pods only"
)
FIREWALL = "close the port to others by a firewall or a NetworkPolicy"
STYLE = {"ok": "green", "warn": "yellow", "fail": "red"}


def findings(config: Config, place: Place, env: Mapping[str, str], measured: Measured) -> Iterator[Finding]:
    """All of them, for the machine that this process is on."""
    yield _ranks(config, place, env)
    yield _hosts(config, place, env)
    yield from _store(config, place, env, measured)
    yield _gloo(place, env, measured)
    yield _encryption(config, place, env, measured)
    yield from _gpus(config)
    yield from _secure(config, place, env)
    yield _data(config, place, env)
    yield from network.findings(config, place, env)


def run(args: Namespace) -> int:
    """Print the findings for this machine, on its first rank. The exit code: 1 if something fails."""
    place, config = Place.from_env(), build(*asked(args).layers)
    if place.local_rank != 0:
        return DONE
    found = list(findings(config, place, os.environ, measure(os.environ)))
    table = Table(title=f"{socket.gethostname()}: what is protected and what is not", show_lines=True)
    for column in ("", "about", "found", "what to do"):
        table.add_column(column)
    for f in found:
        table.add_row(f"[{STYLE[f.level]}]{f.level}[/]", f.about, f.found, f.remedy)
    console(140).print(table)
    if args.bundle:
        bundle.write(args.bundle, found, config, place, os.environ)
        print(f"written to {args.bundle}; it has no keys, and no values that look like secrets")
    return FAILED if any(f.level == "fail" for f in found) else DONE


def _ranks(config: Config, place: Place, env: Mapping[str, str]) -> Finding:
    secure, n = config.privacy.secure_aggregation.enabled, place.world_size
    if "WORLD_SIZE" not in env:
        return Finding("ranks", "ok", "not known: no launcher's variables here (secure aggregation needs at least 3)")
    if secure and n < 3:
        why = "alone there is nothing to hide in" if n == 1 else "of a sum of two, each knows the other part"
        return Finding("ranks", "fail", f"{n}; secure aggregation needs at least 3: {why}", "start at least 3 parties")
    return Finding("ranks", "ok", f"{n}, {place.local_world_size} of them here")


def _hosts(config: Config, place: Place, env: Mapping[str, str]) -> Finding:
    at = env.get("MASTER_ADDR", "")
    if place.world_size == 1:
        return Finding(
            "hosts", "ok", "one process" if "WORLD_SIZE" in env else "not known: no launcher's variables here"
        )
    if not spans_hosts(place, env):
        return Finding("hosts", "ok", f"all ranks are here, and meet at {at}")
    trusted = config.privacy.trust_network
    found = f"ranks are on several hosts, and meet at {at}" + ("; privacy.trust_network=true" if trusted else "")
    remedy = f"{TUNNEL}; then privacy.trust_network=true"
    return Finding("hosts", "ok", found) if trusted else Finding("hosts", "warn", found, remedy)


def _store(config: Config, place: Place, env: Mapping[str, str], measured: Measured) -> Iterator[Finding]:
    """Where ranks meet: the run's own store if it is on this machine, else one like it."""
    port = int(env.get("MASTER_PORT", 0))
    live = sorted({address for address, _ in listening(port)}) if port and place.world_size > 1 else []
    where, whose = live or list(measured.store), f"of this run, port {port}" if live else "as rank 0 would hold it"
    if not where:
        yield Finding("store", "warn", f"could not be measured ({measured.error or 'no socket found'})")
        return
    listens = f"the store ({whose}) listens on {_shown(where)}"
    if all(is_loopback(address) for address in where):
        agent = "TORCHELASTIC_RUN_ID" in env
        beside = f"; the launcher's own{'' if agent else ', if there is one,'} listens on every interface"
        yield Finding("store", "warn" if agent else "ok", f"{listens}: this machine only{beside}", FIREWALL * agent)
    else:
        yield Finding("store", "warn", listens, f"MASTER_ADDR in digits, which rank 0 listens at alone; {FIREWALL}")
    answered = {
        True: f"none: a stranger at {measured.asked} was answered, and could read and write",
        False: f"a stranger at {measured.asked} could not connect",
        None: "not measured: the store's reply to a stranger was not understood",
    }[measured.answered]
    remedy = f"{FIREWALL}; give secure aggregation a roster, so that a stranger cannot stand for a party"
    level = "ok" if measured.answered is False else "warn"
    yield Finding("store, authentication", level, answered, "" if level == "ok" else remedy)


def _gloo(place: Place, env: Mapping[str, str], measured: Measured) -> Finding:
    """Where the updates pass."""
    if measured.error:
        return Finding(
            "gloo", "fail", f"two ranks on this machine could not meet: {measured.error}",
            "set GLOO_SOCKET_IFNAME to an interface of this machine, or give its host name an address",
        )  # fmt: skip
    named, local = env.get("GLOO_SOCKET_IFNAME"), all(is_loopback(a) for a in measured.gloo)
    chosen = f"GLOO_SOCKET_IFNAME={named}" if named else "on the way to MASTER_ADDR"
    found = f"ranks listen on {_shown(measured.gloo)} ({chosen})"
    if local and spans_hosts(place, env):
        return Finding(
            "gloo", "fail", f"{found}: ranks on other hosts cannot reach it",
            "set GLOO_SOCKET_IFNAME to the interface by which they can (wg0, eth0)",
        )  # fmt: skip
    if local:
        return Finding("gloo", "ok", f"{found}: this machine only; over several hosts, those on the way to MASTER_ADDR")
    remedy = "GLOO_SOCKET_IFNAME=lo for ranks of one host; an encrypted interface (wg0) for several"
    return Finding("gloo", "warn", f"{found}, without authentication", remedy)


def _encryption(config: Config, place: Place, env: Mapping[str, str], measured: Measured) -> Finding:
    if measured.error:
        return Finding("gloo, encryption", "warn", "could not be measured")
    if not measured.no_tls:
        return Finding(
            "gloo, encryption", "ok" if env.get("GLOO_DEVICE_TRANSPORT") == "TCP_TLS" else "warn",
            f"this torch {torch.__version__} has TLS in gloo", "GLOO_DEVICE_TRANSPORT=TCP_TLS turns it on",
        )  # fmt: skip
    found = f"none: torch {torch.__version__} refuses GLOO_DEVICE_TRANSPORT=TCP_TLS ({measured.no_tls})"
    if spans_hosts(place, env) and config.privacy.trust_network:
        return Finding("gloo, encryption", "ok", f"{found}; privacy.trust_network=true")
    return Finding("gloo, encryption", "warn", f"{found}; a tap between hosts reads every message", TUNNEL)


def _gpus(config: Config) -> Iterator[Finding]:
    if torch.cuda.is_available() and config.run.backend != "gloo" and config.run.device != "cpu":
        found = "not measured; by NVIDIA's manual NCCL does not encrypt unless it was built to"
        yield Finding("nccl, encryption", "warn", found, f"NCCL_SOCKET_IFNAME=wg0; {TUNNEL}")


def _secure(config: Config, place: Place, env: Mapping[str, str]) -> Iterator[Finding]:
    secure = config.privacy.secure_aggregation
    if not secure.enabled:
        yield Finding(
            "updates", "warn", "privacy.secure_aggregation.enabled=false: neighbours see parts of a raw update",
            "privacy.secure_aggregation.enabled=true, with at least 3 parties",
        )  # fmt: skip
        return
    if not secure.roster or not secure.key:
        yield Finding(
            "identities", "warn", "privacy.secure_aggregation.roster and .key are not both set: keys are made at "
            "start, and whoever controls the network can stand for every party", "fedddp keygen",
        )  # fmt: skip
    roster = None
    if secure.roster:
        try:
            roster = Roster.load(secure.roster)
            yield _roster(roster, Path(secure.roster), place)
        except IdentityError as error:
            yield Finding("roster", "fail", str(error))
    if secure.key:
        for rank in _ranks_here(place):
            if "RANK" not in env and "{rank}" in secure.key:
                yield Finding("key", "warn", f"{secure.key}: not known which rank this is", "set RANK and WORLD_SIZE")
                return
            yield _key(rank_path(secure.key, rank), rank, roster if "RANK" in env else None)


def _roster(roster: Roster, path: Path, place: Place) -> Finding:
    found = f"{path}: {len(roster.keys)} parties, digest {roster.digest.hex()[:16]}"
    if place.world_size > 1 and len(roster.keys) != place.world_size:
        return Finding(
            "roster", "fail", f"{found}, but {place.world_size} ranks", "make it again from everybody's .pub"
        )
    if path.stat().st_mode & 0o022:
        return Finding("roster", "fail", f"{found}; others may write it", f"chmod 644 {path}")
    return Finding("roster", "ok", found, "compare the digest with the other parties over another channel")


def _key(path: Path, rank: int, roster: Roster | None) -> Finding:
    about = f"key of rank {rank}"
    try:
        identity = Identity.load(path)
    except IdentityError as error:
        return Finding(about, "fail", str(error))
    if roster and roster.keys.get(rank) != identity.public:
        return Finding(about, "fail", f"{path}: is not the key of rank {rank} in the roster", "check RANK and the file")
    folder = path.absolute().parent.stat().st_mode
    if folder & 0o022 and not folder & stat.S_ISVTX:
        return Finding(about, "warn", f"{path}: others may write its folder", f"chmod 700 {path.absolute().parent}")
    return Finding(about, "ok", f"{path}: only its owner can read it")


def _data(config: Config, place: Place, env: Mapping[str, str]) -> Finding:
    """Whose examples this machine holds."""
    data, loader = config.data, DATASETS.get(config.data.name)
    if not isinstance(loader, Parts):
        found = f"simulation: every rank can read all of {data.name}, and takes its own clients' part by itself"
        return Finding("data", "warn", found, "fedddp split, and data.name=parts with one client's folder")
    try:
        num_clients = loader.public(Path(data.root)).num_clients
    except ValueError as error:
        return Finding("data", "fail", str(error))
    held = {k for k in range(num_clients) if (Path(data.root) / train_file(k)).exists()}
    if "RANK" not in env:
        found = f"{data.root}: public/ and {len(held)} of {num_clients} clients' folders"
        return Finding("data", "ok" if len(held) == 1 else "warn", found, "set RANK and WORLD_SIZE to compare")
    own = {k for k in range(num_clients) if k % place.world_size in _ranks_here(place)}
    if own - held:
        missing = train_file(min(own - held))
        return Finding(
            "data", "fail", f"{data.root}: {missing} is not there, its client lives here", "copy it from its owner"
        )
    if held - own:
        found = f"{data.root}: holds {len(held - own)} clients' folders that no rank of this machine needs"
        return Finding("data", "warn", found, "leave public/ and the own clients' folders only")
    return Finding("data", "ok", f"{data.root}: {len(own)} of {num_clients} clients' folders, those that live here")


def _ranks_here(place: Place) -> range:
    """A launcher counts the ranks of a machine in one go."""
    return range(place.rank, place.rank + place.local_world_size)


def _shown(addresses: Sequence[str]) -> str:
    every = {"0.0.0.0": "every interface (0.0.0.0)", "::": "every interface (::)"}
    return ", ".join(every.get(address, address) for address in addresses)
