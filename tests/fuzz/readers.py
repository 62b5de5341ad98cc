"""The readers that are fuzzed: for each, right files in a folder, and an attempt on them with something changed."""

import contextlib
import csv
import hashlib
import io
import json
import shutil
import struct
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from random import Random

import numpy as np
import tomli_w
import torch
from safetensors.torch import load, save

from fedddp.checkpoints.account import Record, read
from fedddp.checkpoints.spend_file import SpendFile
from fedddp.cli.main import main
from fedddp.cli.sweep.grid import read as read_sweep
from fedddp.comm.world import Place
from fedddp.config import Config, build, parse, to_dict
from fedddp.errors import UsageError
from fedddp.registry.shipped import shipped
from fedddp.secure.identity import Identity, Roster
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from fedddp.train import configured
from tests.fuzz import mutate
from tools.reference import build as build_reference

Attempt = Callable[[Random], object]
Change = Callable[[bytes, Random], bytes]
SMALL = ["--run.threads=1", "--run.device=cpu", "--telemetry.tensorboard=false", "--client.batch_size=5"]
TINY = [*SMALL, "--model.name=logistic"]
SYNTHETIC = [
    "--data.name=synthetic",
    "--data.args.num_train=60",
    "--data.args.num_test=20",
    "--data.args.shape=[1,8,8]",
]
ENDS = (0, 1, 2)  # 1, in one line: a run that learns nothing
THREE = "--data.partition.num_clients=3"


def prepared(*words: str) -> None:
    """What a start does before anything is written."""
    made = prepare(resolve(configured(parse(words).layers), Place()), Place())
    if made.output:
        made.output.folder.release()


def ran(*words: str, ends: tuple[int, ...] = (0, 2)) -> None:
    """A command that ends as one should. Raises what it said as UsageError, or RuntimeError for another exit code."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        code = main([*words])
    text = said.getvalue()
    if code not in ends or "Traceback" in text:
        raise RuntimeError(f"exit code {code}: {text[-3000:]}")
    if code:
        raise UsageError(text.strip().splitlines()[-1])


def files(folder: Path) -> dict[str, bytes]:
    """The content of all files below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def on(folder: Path, right: Mapping[str, bytes], change: Callable[[dict[str, bytes], Random], None], then) -> Attempt:
    """An attempt: write the ``right`` files after a ``change``, ``then`` read them."""

    def attempt(draw: Random) -> None:
        content = dict(right)
        if draw.random() < 0.98:  # a few as they are: these are read without a word
            change(content, draw)
        shutil.rmtree(folder, ignore_errors=True)
        for name, data in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            (folder / name).chmod(0o600)
        then(draw)

    return attempt


def one_of(changes: Mapping[str, Change]) -> Callable[[dict[str, bytes], Random], None]:
    """Change one file, by the longest ending of its name that is here."""

    def change(content: dict[str, bytes], draw: Random) -> None:
        name = draw.choice([name for name in content if name.endswith((*changes,))])
        how = changes[max((ending for ending in changes if name.endswith(ending)), key=len)]
        try:
            content[name] = how(content[name], draw)
        except Exception:  # what cannot be written so
            content[name] = mutate.of_bytes(content[name], draw)

    return change


def npz(content: bytes, draw: Random) -> bytes:
    if draw.random() < 0.3:
        return mutate.of_bytes(content, draw)
    with np.load(io.BytesIO(content)) as arrays:
        found = dict(arrays)
    for _ in range(draw.randint(1, 2)):
        name = draw.choice([*found])
        found[name] = mutate.of_array(found[name], draw)
    if draw.random() < 0.1:
        del found[draw.choice([*found])]
    packed = io.BytesIO()
    (np.savez if draw.random() < 0.5 else np.savez_compressed)(packed, **found)
    return packed.getvalue()


def tensors(content: bytes, draw: Random) -> bytes:
    how = draw.random()
    if how < 0.3:
        return mutate.of_bytes(content, draw)
    if how < 0.5:  # the header, which is JSON behind its length
        size = struct.unpack("<Q", content[:8])[0]
        header = mutate.of_json(content[8 : 8 + size].rstrip(), draw)
        return struct.pack("<Q", len(header)) + header + content[8 + size :]
    found = load(content)
    name = draw.choice([*found])
    changed = np.ascontiguousarray(mutate.of_array(found[name].numpy(), draw))
    return save({**found, (draw.choice(mutate.WORDS) if how > 0.95 else name): torch.from_numpy(changed)})


def table(content: bytes, draw: Random) -> bytes:
    rows = [*csv.reader(io.StringIO(content.decode()))]
    if draw.random() < 0.3:
        return mutate.of_bytes(content, draw)
    row = draw.choice(rows)
    row[draw.randrange(len(row))] = str(draw.choice(mutate.VALUES))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode(errors="surrogatepass")


def idx(folder: Path) -> Attempt:
    def packed(array: np.ndarray) -> bytes:
        return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()

    rng = np.random.default_rng(0)
    right = {}
    for part, n in (("train", 40), ("t10k", 20)):
        right[f"MNIST/raw/{part}-images-idx3-ubyte"] = packed(rng.integers(0, 256, (n, 28, 28), dtype=np.uint8))
        right[f"MNIST/raw/{part}-labels-idx1-ubyte"] = packed((np.arange(n) % 10).astype(np.uint8))

    def labels(content: bytes, draw: Random) -> bytes:
        numbers = np.frombuffer(content[8:], np.uint8)
        return packed(mutate.of_array(numbers, draw).astype(np.uint8)) if draw.random() < 0.4 else header(content, draw)

    def header(content: bytes, draw: Random) -> bytes:
        return (
            mutate.of_bytes(content[:16], draw) + content[16:]
            if draw.random() < 0.5
            else mutate.of_bytes(content, draw)
        )

    words = [*TINY, "--data.name=mnist", f"--data.root={folder}", "--data.download=false", THREE]
    return on(folder, right, one_of({"idx1-ubyte": labels, "idx3-ubyte": header}), lambda _: prepared(*words))


def arrays(folder: Path) -> Attempt:
    rng, packed = np.random.default_rng(0), io.BytesIO()
    np.savez(packed, x=rng.random((40, 6), np.float32), y=np.arange(40) % 3, owner=np.arange(40) % 3)
    words = [*TINY, "--data.name=npz", f"--data.root={folder}", "--data.args.file=a.npz"]
    words.append("--data.partition.name=natural")
    return on(folder, {"a.npz": packed.getvalue()}, one_of({"": npz}), lambda _: prepared(*words, THREE))


def parts(folder: Path) -> Attempt:
    ran("split", f"--out={folder}", *SYNTHETIC, THREE)

    def change(content: dict[str, bytes], draw: Random) -> None:
        one_of({".json": mutate.of_json, ".safetensors": tensors})(content, draw)
        manifest = next(name for name in content if name.endswith(".json"))
        try:
            known = json.loads(content[manifest])
            if draw.random() < 0.8:  # with sums that fit
                known["sha256"] = {k: hashlib.sha256(content[k]).hexdigest() for k in known["sha256"]}
                content[manifest] = json.dumps(known).encode()
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            pass

    return on(folder, files(folder), change, lambda _: prepared(*TINY, "--data.name=parts", f"--data.root={folder}"))


def partition(folder: Path) -> Attempt:
    folder.mkdir(parents=True, exist_ok=True)
    for ending in ("json", "csv", "npz"):
        ran("show", *SYNTHETIC, THREE, f"--save={folder}/p.{ending}", f"--out={folder}/p.png")
    right = {name: data for name, data in files(folder).items() if not name.endswith("png")}
    words = [*TINY, *SYNTHETIC, "--data.partition.name=file"]

    def attempt(draw: Random) -> None:
        name = draw.choice([*right])
        change = one_of({".json": mutate.of_json, ".csv": table, ".npz": npz})
        on(folder, {name: right[name]}, change, lambda _: prepared(*words, f"--data.partition.path={folder}/{name}"))(
            draw
        )

    return attempt


def rows(folder: Path) -> Attempt:
    """A table of columns, as CSV and as Parquet."""
    lines = [f"{i % 5},{i / 3:.3f},{'ab'[i % 2]},{i % 3},{i % 3}" for i in range(40)]
    right = {"t.csv": "\n".join(["a,b,c,who,y", *lines]).encode() + b"\n"}
    packed = io.BytesIO()
    with contextlib.suppress(ImportError):
        import pyarrow.csv
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.csv.read_csv(io.BytesIO(right["t.csv"])), packed)
        right["t.parquet"] = packed.getvalue()
    words = [*TINY, f"--data.root={folder}", "--data.args.target=y"]

    def attempt(draw: Random) -> None:
        name = draw.choice([*right])
        more = ["--data.args.owner=who", "--data.partition.name=natural"] if draw.random() < 0.5 else []
        more += [f"--data.name={name[2:]}", f"--data.args.file={name}", THREE]
        change = one_of({".csv": table, ".parquet": mutate.of_bytes})
        on(folder, {name: right[name]}, change, lambda _: prepared(*words, *more))(draw)

    return attempt


def texts(folder: Path) -> Attempt:
    """Lines of JSON with a tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    tokenizer = Tokenizer(models.WordLevel({"[PAD]": 0, "a": 1, "b": 2, "c": 3, "?": 4}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    lines = [{"prompt": "a b " * (i % 3), "response": "c a", "owner": "xyz"[i % 3]} for i in range(30)]
    right = {
        "t.jsonl": "\n".join(map(json.dumps, lines)).encode(),
        "m/tokenizer.json": tokenizer.to_str().encode(),
        "m/config.json": json.dumps({"vocab_size": 8}).encode(),
        "m/tokenizer_config.json": json.dumps({"eos_token": "b"}).encode(),
    }
    words = [*SMALL, "--model.name=lstm", "--model.hidden=4", "--task.name=next_token", "--data.name=jsonl"]
    words += [f"--data.root={folder}", "--data.args.file=t.jsonl", "--data.args.tokenizer=m", "--data.args.length=8"]
    words += ["--data.partition.name=natural", THREE]
    return on(folder, right, one_of({"jsonl": mutate.of_lines, "": mutate.of_json}), lambda _: prepared(*words))


def images(folder: Path) -> Attempt:
    from PIL import Image

    right = {}
    for i in range(12):
        packed = io.BytesIO()
        pixels = np.random.default_rng(i).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(packed, format=("png", "jpeg")[i % 2])
        right[f"{'ab'[i % 3 > 1]}/{i}.{('png', 'jpg')[i % 2]}"] = packed.getvalue()
    words = [*TINY, "--data.name=imagefolder", f"--data.root={folder}", THREE]

    def then(draw: Random) -> None:
        size = draw.choice(["", "[6,6]", "[100000,100000]", "[1,1]", "[0,1]"])
        prepared(*words, *([f"--data.args.resize={size}"] if size else []))

    return on(folder, right, one_of({"": mutate.of_bytes}), then)


def leaf(folder: Path) -> Attempt:
    def user(n: int) -> dict:
        return {"x": [[0.1 * i, 1.0, -1.0] for i in range(n)], "y": [i % 2 for i in range(n)]}

    data = {"users": ["a", "b", "c"], "num_samples": [6, 5, 4], "user_data": {"a": user(6), "b": user(5), "c": user(4)}}
    right = {f"{part}/all.json": json.dumps(data).encode() for part in ("train", "test")}
    words = [*TINY, "--data.name=leaf", f"--data.root={folder}", "--data.partition.name=natural", THREE]
    return on(folder, right, one_of({"": mutate.of_json}), lambda _: prepared(*words))


def weights(folder: Path) -> Attempt:
    state = {"1.weight": torch.zeros(10, 64), "1.bias": torch.zeros(10)}
    pickled = io.BytesIO()
    torch.save(state, pickled)
    right = {"w.safetensors": save(state), "w.pt": pickled.getvalue()}

    def attempt(draw: Random) -> None:
        name = draw.choice([*right])
        words = [*TINY, *SYNTHETIC, THREE, f"--model.weights={folder}/{name}"]
        on(
            folder,
            {name: right[name]},
            one_of({".safetensors": tensors, ".pt": mutate.of_bytes}),
            lambda _: prepared(*words),
        )(draw)

    return attempt


def run_folder(folder: Path) -> Attempt:
    """A run's folder, its checkpoint's sums mostly made to fit: resumed, shown, drawn, reported, loaded."""
    run = folder / "runs" / "r"
    words = [*TINY, *SYNTHETIC, THREE, "--algorithm.name=scaffold", "--run.name=r", f"--run.dir={folder}/runs"]
    ran("train", *words, "--run.rounds=2")
    text = {
        "jsonl": mutate.of_lines,
        "json": mutate.of_json,
        ".toml": mutate.of_lines,
        ".csv": table,
        ".safetensors": tensors,
    }

    def change(content: dict[str, bytes], draw: Random) -> None:
        one_of(text)(content, draw)
        if draw.random() < 0.8:
            for name in [name for name in content if name.endswith("manifest.json")]:
                inside = name.removesuffix("manifest.json")
                there = [other for other in content if other.startswith(inside) and other != name]
                sums = {other.removeprefix(inside): hashlib.sha256(content[other]).hexdigest() for other in there}
                content[name] = json.dumps(sums).encode()

    resumed = [*words, f"--run.resume={run}", "--run.rounds=3"]
    commands = [
        ("train", *resumed),
        ("train", *words, "--run.resume=auto", "--run.rounds=3"),
        ("plot", str(run), f"--out={folder}/curves.png"),
        ("report", str(run), f"--out={folder}/r.html"),
        ("runs", f"{folder}/runs"),
        ("export", str(run), "--to=safetensors", f"--out={folder}/out"),
    ]

    def then(draw: Random) -> None:
        how = draw.random()
        if how < 0.6:  # the quick ones most often
            prepared(*(resumed if how < 0.3 else resumed[-2:]))
        else:
            ran(*draw.choice(commands if how < 0.7 else commands[-2:]), ends=ENDS)

    right = files(folder)
    for command in commands:  # what they import is there from now on
        ran(*command)
    return on(folder, right, change, then)


def toml(folder: Path) -> Attempt:
    """Shipped configurations and sweeps with another value, or other bytes."""
    texts = [path.read_bytes() for path in shipped().values()] + [tomli_w.dumps(to_dict(Config())).encode()]
    grid = tomli_w.dumps(
        {"sweep": {"nproc": 2}, "base": {"run.rounds": 2}, "grid": {"run.seed": [0, 1], "model.name": ["cnn", "mlp"]}}
    )

    def change(content: bytes, draw: Random) -> bytes:
        if draw.random() < 0.4:
            return mutate.of_lines(content, draw)
        return tomli_w.dumps(mutate.of_value(tomllib.loads(content.decode()), draw)).encode(errors="surrogatepass")

    def then(draw: Random) -> None:
        path = folder / "a.toml"
        if b"[grid" in path.read_bytes() or draw.random() < 0.2:
            read_sweep(path)
        else:
            resolve(build(*parse([str(path)]).layers), Place(world_size=draw.choice([1, 4])))

    def attempt(draw: Random) -> None:
        on(folder, {"a.toml": draw.choice([*texts, grid.encode()])}, one_of({"": change}), then)(draw)

    return attempt


def words(folder: Path) -> Attempt:
    """One or two keys of the configuration with any value; some of these runs train a round."""
    keys = build_reference()["keys"]
    base = [*TINY[:-1], "--model.name=mlp", *SYNTHETIC, THREE, f"--run.dir={folder}/runs"]
    forbidden = ("run.dir", "run.resume", "data.download", "run.device", "run.timeout")
    long = ("rounds", "local_epochs", "local_steps", "personal_epochs", "head_epochs")

    def attempt(draw: Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        more, trains = [], draw.random() < 0.4
        for _ in range(draw.randint(1, 2)):
            row = draw.choice(keys)
            key = row["name"]
            if key in forbidden or (trains and key.rpartition(".")[2] in long):
                continue
            value = draw.choice(mutate.VALUES)
            if key == "run.threads" and value in range(64, 1025):
                continue  # their stacks do not fit into the address space of an attempt
            text = json.dumps(value) if draw.random() < 0.5 else str(value)
            more += [f"--{at}.name={draw.choice(names)}" for at, names in row.get("when", {}).items()]
            more.append(f"--{key}={text}")
        if trains:
            ran("train", *base, "--run.rounds=1", *more, ends=ENDS)
        else:
            prepared(*base, *more)

    return attempt


def bounds(folder: Path) -> Attempt:
    """A number of the configuration at one of its bounds, or two of them: what they ask for together is refused."""
    base = [*TINY[:-1], *SYNTHETIC, THREE, f"--run.dir={folder}/runs"]
    keys = [row for row in build_reference()["keys"] if ends_of(row["type"]) and row["name"] != "run.threads"]
    trained = ("optimizer", "loss", "aggregation", "attack", "algorithm", "privacy", "skew")

    def attempt(draw: Random) -> None:
        shutil.rmtree(folder, ignore_errors=True)
        row, other = draw.choice(keys), draw.choice(keys)
        more = [f"--{at}.name={draw.choice(names)}" for at, names in row.get("when", {}).items()]
        for one in (row, other) if other["name"].split(".")[0] == row["name"].split(".")[0] else (row,):
            more.append(f"--{one['name']}={draw.choice(ends_of(one['type']))}")
        if any(part in row["name"] for part in trained) and "epochs" not in row["name"] and draw.random() < 0.5:
            ran("train", *base, "--run.rounds=1", *more, ends=ENDS)
        else:
            prepared(*base, *more)

    return attempt


def ends_of(schema: object) -> list[float]:
    """The bounds of the numbers in a JSON schema; of an open one, a number beside it."""
    if isinstance(schema, list):
        return [end for one in schema for end in ends_of(one)]
    if not isinstance(schema, dict):
        return []
    own = [schema[name] for name in ("minimum", "maximum") if name in schema]
    own += [schema["exclusiveMinimum"] + 1e-30] if "exclusiveMinimum" in schema else []
    own += [schema["exclusiveMaximum"] * (1 - 1e-12)] if "exclusiveMaximum" in schema else []
    return own + [end for name, one in schema.items() if name in ("anyOf",) for end in ends_of(one)]


def keys(folder: Path) -> Attempt:
    """A key, a roster and a signed account."""
    folder.mkdir(parents=True)
    Identity.new().save(folder / "key.pem")
    roster = Roster({0: Identity.new().public, 1: Identity.load(folder / "key.pem").public})
    (folder / "roster.toml").write_text(roster.text())
    record = Record(folder / "account", folder / "key.pem")
    for release in (1, 2):
        record.append(("run", "digest"), release, "client", release - 1, ((1.0, 0.25, 3),))
    record.release()
    SpendFile(folder / "privacy.jsonl").append(1, 0, [0, 1])
    SpendFile(folder / "privacy.jsonl").append(2, 1, None)
    ran("show", "account", str(folder / "account"))  # what it imports is there from now on

    def then(draw: Random) -> None:
        draw.choice(
            [
                lambda: Identity.load(folder / "key.pem"),
                lambda: Roster.load(folder / "roster.toml"),
                lambda: read(folder / "account"),
                lambda: read(folder / "account", folder / "key.pem"),
                lambda: SpendFile(folder / "privacy.jsonl").since(0),
                lambda: ran("show", "account", str(folder / "account"), ends=(0, 1, 2)),  # 1: the record was changed
            ]
        )()

    changes = {"jsonl": mutate.of_lines, ".pem": mutate.of_bytes, ".toml": mutate.of_lines, ".account": mutate.of_json}
    return on(folder, files(folder), one_of(changes), then)


READERS: dict[str, Callable[[Path], Attempt]] = {
    "words": words, "bounds": bounds, "toml": toml, "idx": idx, "npz": arrays, "parts": parts, "partition": partition,
    "table": rows, "images": images, "leaf": leaf, "texts": texts, "weights": weights, "run": run_folder, "keys": keys,
}  # fmt: skip
