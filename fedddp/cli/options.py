"""The options of each command, for argparse. Nothing here imports torch."""

import os
from argparse import REMAINDER, SUPPRESS, ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

FORMATS = ("state_dict", "safetensors", "onnx", "exported-program", "hf", "peft")
PUBLISHED = ("mcmahan", "niid_mnist", "flgo")
DEMONSTRATIONS = ("inversion", "matching", "membership")
LINKS = (50.0, 200.0, 1000.0)
SIZED = ("dtype", "step_seconds", "local_steps", "fragments")
"""Options of a plan that go with a size that was typed."""


def user_path(word: str) -> Path:
    """A path that a user wrote, with ``~`` for the home."""
    return Path(os.path.expanduser(word))


def whole(least: int) -> Callable[[str], int]:
    """The type of options that take a whole number of at least ``least``."""

    def number(word: str) -> int:
        if not word.isdecimal() or int(word) < least:
            raise ArgumentTypeError(f"{word!r} should be a whole number of at least {least}")
        return int(word)

    return number


def above_zero(word: str) -> float:
    """The type of options that take a number above 0."""
    try:
        number = float(word)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise ArgumentTypeError(f"{word!r} should be a number above 0")
    return number


def above_zeros(words: str) -> list[float]:
    """The type of options that take numbers above 0, with commas between them."""
    return [above_zero(word) for word in words.split(",")]


def new(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=user_path, metavar="NAME", help="the project, a new folder")
    parser.add_argument(
        "--template", default="mnist", metavar="NAME",
        help="mnist, own-model, own-algorithm, text, tabular, privacy or exercise [mnist]",
    )  # fmt: skip
    parser.add_argument("--without-solution", action="store_true", help="of an exercise: leave its solution out")


def train(parser: ArgumentParser) -> None:
    _print_config(parser)
    parser.add_argument("--dry-run", action="store_true", help="try the run on a few examples; keep nothing")


def _print_config(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--print-config",
        metavar="all",
        choices=("changed", "all"),
        help="print what differs from the defaults, as TOML; all: every key",
    )


def launch(parser: ArgumentParser) -> None:
    parser.add_argument("-n", "--ranks", type=whole(1), help="ranks on this machine [one per GPU, or 2 without one]")
    parser.add_argument("--nproc-per-node", "--nproc_per_node", type=whole(1), dest="ranks", help=SUPPRESS)
    parser.add_argument("--nnodes", type=whole(1), default=1, help="number of machines [1]")
    parser.add_argument("--node-rank", type=whole(0), help="number of this machine [0 at --master, else as they come]")
    parser.add_argument("--master", metavar="HOST:PORT", help="where the machines meet: machine 0, as all reach it")
    parser.add_argument(
        "--join-timeout", metavar="S", type=above_zero, help="seconds machines wait for each other [900]"
    )
    parser.add_argument("--max-restarts", type=whole(0), default=0, help="restarts of all ranks after a failure [0]")
    parser.add_argument(
        "--min-ranks",
        type=whole(1),
        help="go on without lost ranks, as long as this many are left; --max-restarts of those lost start again and "
        "join [all are needed]",
    )
    _slurm(parser)
    parser.add_argument("--dry-run", action="store_true", help=SUPPRESS)  # to say where it belongs
    _print_config(parser)


def _slurm(parser: ArgumentParser) -> None:
    parser.add_argument("--slurm", action="store_true", help="submit to SLURM; a job queues again at its time limit")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION",
        help="an option of sbatch: --sbatch=--time=04:00:00; given again, another",
    )  # fmt: skip
    parser.add_argument("--print", action="store_true", help="of --slurm: print the script, submit nothing")


def doctor(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--bundle", type=user_path, metavar="FILE", help="also write a report, without secrets, as JSON"
    )


def plan(parser: ArgumentParser) -> None:
    parser.add_argument("-n", "--ranks", type=whole(1), help="number of ranks [2; of --parameters: very many]")
    parser.add_argument("--link", type=above_zeros, metavar="MBIT,...", help="rates in Mbit/s [50,200,1000]")
    parser.add_argument("--no-timing", dest="timing", action="store_false", help="do not time local steps here")
    parser.add_argument("--json", action="store_true", help="print all of it as JSON, in bytes and seconds")
    parser.add_argument("--parameters", type=above_zero, metavar="N", help="plan for a size, without a configuration")
    parser.add_argument("--dtype", choices=("float64", "float32", "bfloat16", "float16", "int8"), help="[float32]")
    parser.add_argument("--step-seconds", type=above_zero, metavar="S", help="of a local step")
    parser.add_argument("--local-steps", type=whole(1), metavar="H", help="steps between two exchanges [1]")
    parser.add_argument("--fragments", type=whole(1), metavar="P", help="parts that are sent apart [1]")


def show(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, default=Path("partition.png"), help="the picture [partition.png]")
    parser.add_argument("--save", type=user_path, metavar="FILE", help="write the partition: .json, .csv or .npz")
    parser.add_argument("--images", type=user_path, metavar="FILE", help="draw the first examples of some clients")


def show_account(parser: ArgumentParser) -> None:
    parser.add_argument("folder", type=user_path, metavar="FOLDER", help="the folder of the record")
    parser.add_argument("--key", type=user_path, metavar="FILE", help="the key that signs it: also finds a cut record")
    parser.add_argument("--delta", type=float, default=1e-5, help="delta of the epsilons [1e-5]")


def runs(parser: ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=user_path, default=Path("runs"), metavar="FOLDER", help="[runs]")
    parser.add_argument("--watch", action="store_true", help="show them until Ctrl-C, and how they change")


def rm(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders")
    parser.add_argument("--yes", action="store_true", help="do not ask")


def plot(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders")
    parser.add_argument("--target", type=float, help="draw a line at this value")
    parser.add_argument("--metric", metavar="NAME", help="of the test set, or a key of metrics.jsonl [the runs' own]")
    parser.add_argument("--x", choices=("rounds", "bytes", "seconds", "epsilon"), default="rounds", help="[rounds]")
    parser.add_argument("--smooth", type=whole(1), default=1, metavar="N", help="mean of the last N values [1]")
    parser.add_argument("--out", type=user_path, default=Path("curves.png"), help="PNG, PDF or SVG [curves.png]")


def board(parser: ArgumentParser) -> None:
    folders = {"nargs": "*", "type": user_path, "default": [Path("runs")], "metavar": "FOLDER"}
    parser.add_argument("folders", **folders, help="run folders, or folders of such, sweeps among them [runs]")
    parser.add_argument("--port", type=whole(0), default=6006, help="0 = a free one [6006]")
    parser.add_argument(
        "--host", default="localhost", help="address to listen on; others can read it there [localhost]"
    )


def report(parser: ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", type=user_path, metavar="RUN", help="run folders, or folders of runs")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="the file [report.html in RUN, or beside it]")
    parser.add_argument("--lang", choices=("en", "zh"), default="en", help="its language: en or zh (Chinese) [en]")


def sweep(parser: ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="show the runs and how far each is, and exit")
    parser.add_argument(
        "--only", action="append", default=[], metavar="PATTERN",
        help='runs whose name or label matches: fedavg, "seed=[01]", iid,shards; given again, both must match',
    )  # fmt: skip
    _slurm(parser)


def reproduce(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=PUBLISHED, metavar="NAME", help=", ".join(PUBLISHED))
    parser.add_argument("--quick", action="store_true", help="a small version on embedded digits, not comparable")
    parser.add_argument("--only", action="append", default=[], metavar="PATTERN", help="as fedddp sweep --only")


def tune(parser: ArgumentParser) -> None:
    parser.add_argument("--grid", action="append", default=[], metavar="KEY=V,V", help="a key and values to try")
    parser.add_argument("--trials", type=whole(0), default=0, help="Optuna proposes so many combinations; 0 = all [0]")
    parser.add_argument("--range", action="append", default=[], metavar="KEY=LOW:HIGH[:log]", help="of Optuna's trials")
    parser.add_argument("--folds", type=whole(2), default=5, help="folds that each client's examples are cut into [5]")
    parser.add_argument("--examples", type=whole(0), default=0, help="use at most so many per client; 0 = all [0]")
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="[<run.dir>/<run.name>-tune]")


def audit(parser: ArgumentParser) -> None:
    parser.add_argument("--canaries", type=whole(100), default=1000, help="canaries in all [1000]")
    parser.add_argument("--out", type=user_path, metavar="FILE", help="write what was found as JSON")


def generate(parser: ArgumentParser) -> None:
    parser.add_argument(
        "run", type=user_path, metavar="RUN", help="run folder of a conditional GAN or a language model"
    )
    parser.add_argument(
        "what",
        nargs="?",
        metavar="CLASSES|TEXT",
        help="of a GAN, what to draw: 0123456789, or 3,14,15; of a language model, the beginning of a text",
    )
    parser.add_argument("--generate", metavar="CLASSES", help=SUPPRESS)
    parser.add_argument("--out", default="digits.png", help="the picture [digits.png]")
    parser.add_argument("--rows", type=whole(1), default=8, help="[8]")
    parser.add_argument("--seed", type=whole(0), default=0, help="[0]")
    parser.add_argument("--judge", type=user_path, metavar="RUN", help="classify drawings by the model of this run")
    parser.add_argument("--samples", type=whole(1), default=1000, help="drawings to classify [1000]")
    parser.add_argument("--length", type=whole(1), default=100, metavar="N", help="tokens of text at most [100]")
    parser.add_argument("--temperature", type=above_zero, metavar="T", help="of text [task.temperature of the run]")
    parser.add_argument("--round", type=whole(1), metavar="N", help="of text: a checkpoint [the best round]")


def export(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("--to", choices=FORMATS, required=True, help="the format")
    parser.add_argument("--round", type=whole(1), metavar="N", help="the checkpoint of this round [the best round]")
    parser.add_argument(
        "--client",
        type=whole(0),
        metavar="K",
        help="what this client would deploy, of the newest checkpoint or --round",
    )
    parser.add_argument("--out", type=user_path, metavar="FOLDER", help="[RUN/export/FORMAT-round-N]")
    parser.add_argument("--force", action="store_true", help="replace files of the same name")


def predict(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=user_path, metavar="RUN", help="run folder")
    parser.add_argument("files", nargs="+", type=user_path, metavar="FILE", help="images, .npz, .csv, .parquet or .txt")
    parser.add_argument("--round", type=whole(1), metavar="N", help="the checkpoint of this round [the best round]")
    parser.add_argument("--client", type=whole(0), metavar="K", help="this client's own model [the server's]")
    parser.add_argument(
        "--out", type=user_path, metavar="FILE.csv", help="write all rows, with a column for each figure"
    )
    parser.add_argument("--resize", action="store_true", help="scale images of another size to the model's")


def split(parser: ArgumentParser) -> None:
    parser.add_argument("--out", type=user_path, metavar="FOLDER", required=True, help="a new folder")


def keygen(parser: ArgumentParser) -> None:
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--parties", type=whole(3), metavar="N", help="keys of N parties and the roster, on one machine")
    what.add_argument("--rank", type=whole(0), metavar="K", help="the key of party K alone, and its public half")
    what.add_argument("--merge", nargs="+", type=user_path, metavar="FILE", help="the roster, from all rank-K.pub")
    parser.add_argument("--out", type=user_path, required=True, metavar="FOLDER", help="where the files are written")


def demo(parser: ArgumentParser) -> None:
    parser.add_argument("name", choices=DEMONSTRATIONS, metavar="NAME", help=", ".join(DEMONSTRATIONS))
    parser.add_argument("given", nargs=REMAINDER, metavar="...", help="its options: fedddp demo NAME --help")


def completion(parser: ArgumentParser) -> None:
    parser.add_argument("shell", choices=("bash", "zsh", "words"), metavar="bash|zsh", help="the shell")
    parser.add_argument("line", nargs="?", default="", help=SUPPRESS)  # of "words", as the scripts call it


def help(parser: ArgumentParser) -> None:
    parser.add_argument("topic", nargs="*", metavar="TOPIC", help="a command, section, choice or key")
