"""The commands: what each does in a line, its options, and the module that does it.

Options are read by argparse, which is in the standard library and enough, since the keys of a configuration come from a
schema anyway. Nothing here imports torch: the module of a command is imported when the command runs.
"""

from argparse import ArgumentParser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import options

EXAMPLES = Path(__file__).parents[2] / "examples" / "privacy"
"""The demonstrations, in a checkout of the repository; an installed package does not have them."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command of ``fedddp``.

    Attributes:
        about: what it does, in a line.
        module: its ``run(args)`` does it and returns the exit code, None for 0.
        options: adds its own options to a parser.
        takes: what stands on the command line besides options, as the usage has it.
        more: the rest of what help says of it.
        keys: the keys that its help lists: "first", or those of a section.
        examples: command lines.
        configured: whether it takes a configuration: files, names of shipped ones, and keys.
        stops: whether it looks for requests to stop by itself, between steps.
        ranks: whether its process may be one of several that srun started.
        answers: the function of its module that returns the text to print instead, and imports no torch.
    """

    about: str
    module: str
    options: Callable[[ArgumentParser], None] = lambda parser: None
    takes: str = ""
    more: str = ""
    keys: str = ""
    examples: tuple[str, ...] = ()
    configured: bool = False
    stops: bool = False
    ranks: bool = False
    answers: str = ""


COMMANDS = {
    "new": Command(
        about="write a small project from a template: a model or algorithm, a configuration, tests",
        module="fedddp.cli.new",
        options=options.new,
        takes="NAME",
        more="What it writes is tested and trained as it is: pytest, then fedddp train config.toml in its folder. "
        "Templates are files of the package; no network is needed. exercise has two blanks, and its tests grade them.",
        examples=("fedddp new first --template=mnist", "fedddp new homework --template=exercise --without-solution"),
        answers="answer",
    ),
    "train": Command(
        about="train a federation in one process, or as a rank of several",
        module="fedddp.train",
        options=options.train,
        more="Without arguments: embedded MNIST digits, one client per rank.",
        keys="first",
        examples=(
            "fedddp train --rounds=5 --clients=4",
            "fedddp train mnist/fedavg_e5 --data.root=data --lr=0.05",
            "torchrun --nproc_per_node=4 -m fedddp.train --algorithm=scaffold",
        ),
        configured=True,
        stops=True,
        ranks=True,
    ),
    "launch": Command(
        about="start several ranks of fedddp train on this machine, or on each of several",
        module="fedddp.cli.launch",
        options=options.launch,
        more="It takes the configuration of fedddp train. On several machines start the same command on each.",
        examples=(
            "fedddp launch -n 4 --rounds=5",
            "fedddp launch -n 4 --min-ranks=2 --max-restarts=3 mnist/fedavg",
            "fedddp launch -n 8 --nnodes=2 --master=first-host:29400 mnist/fedavg",
        ),
        configured=True,
    ),
    "plan": Command(
        about="estimate what a run sends, holds and takes, and what a link allows",
        module="fedddp.cli.plan.command",
        options=options.plan,
        more="It takes the configuration of fedddp train, writes nothing and needs no other rank. Bytes are those of "
        "the run's own collectives; memory is estimated; a few local steps are timed on this machine. For each link: "
        "the seconds of communication in a round, the share of a round that is training, and H, the least "
        "client.local_steps with which communication takes less than a tenth. With --parameters no configuration is "
        "needed.",
        examples=(
            "fedddp plan mnist/fedavg -n 4 --link=10,100",
            "fedddp plan --parameters=8e9 --dtype=bfloat16 --step-seconds=0.5 --local-steps=37 --fragments=37",
        ),
        configured=True,
    ),
    "show": Command(
        about="print and draw a partition: which client owns which examples",
        module="fedddp.cli.show",
        options=options.show,
        more="The population is data.partition.num_clients (default: 4). --save writes a partition for "
        "data.partition.name=file; --images draws the examples as clients see them, data.skew included.",
        examples=("fedddp show --data.partition=dirichlet --clients=10 --out=partition.png",),
        configured=True,
    ),
    "show configs": Command(
        about="list the configurations that come with the package",
        module="fedddp.cli.help",
        answers="configurations",
    ),
    "show account": Command(
        about="check and print a party's privacy account: its runs, epsilon of each and of all",
        module="fedddp.cli.show_account",
        options=options.show_account,
        takes="FOLDER",
        more="FOLDER is what privacy.account.dir stands for on this rank. The exit code is 1 for a changed record.",
        examples=("fedddp show account ~/fedddp-account --key=keys/rank-0.key",),
    ),
    "runs": Command(
        about="list runs: state, rounds, metric, time and size",
        module="fedddp.cli.runs",
        options=options.runs,
        takes="[FOLDER]",
        more="A run that was killed is interrupted, whatever its status.json says.",
        examples=("fedddp runs", "fedddp runs runs/my-sweep --watch"),
        answers="answer",
    ),
    "rm": Command(
        about="remove run folders, and nothing else",
        module="fedddp.cli.runs",
        options=options.rm,
        takes="RUN ...",
        more="It asks first. What is running, or is no run's folder, is refused, and then nothing is removed.",
        examples=("fedddp rm runs/fedavg-mnist-mini-cnn", "fedddp rm --yes runs/fedavg-mnist-mini-cnn-*"),
        answers="remove",
    ),
    "plot": Command(
        about="draw the curves of runs: accuracy, or the metric of their task",
        module="fedddp.cli.plot",
        options=options.plot,
        takes="RUN ...",
        more="Runs that differ in run.seed only are one curve: the mean, and a band of the sample standard deviation. "
        "Beside a PNG or SVG the same is written as a PDF for one column of a paper.",
        examples=("fedddp plot runs/fedavg runs/scaffold --target=0.99", "fedddp plot runs/hospitals --metric=f1"),
    ),
    "tensorboard": Command(
        about="show runs in TensorBoard, each by its own name",
        module="fedddp.cli.board",
        options=options.board,
        takes="[FOLDER ...]",
        more="Runs that start meanwhile appear too. tensorboard --logdir FOLDER shows the same under longer names.",
        examples=("fedddp tensorboard", "fedddp tensorboard runs/fedavg runs/scaffold --port=6007"),
    ),
    "report": Command(
        about="write one HTML file on a run, or on several side by side",
        module="fedddp.cli.report.command",
        options=options.report,
        takes="RUN ...",
        more="A RUN is a run folder, or a folder of runs such as a sweep's. The file needs nothing else: no network "
        "and no script. Of several runs, those that differ in seeds only are a group. The confusion matrix and the "
        "worst mistakes are scored again, where the run's data and modules are at hand.",
        examples=("fedddp report runs/fedavg", "fedddp report runs/fedavg runs/scaffold --out=report.html --lang=zh"),
    ),
    "sweep": Command(
        about="run a grid of experiments and compare them",
        module="fedddp.cli.sweep.command",
        options=options.sweep,
        takes="SWEEP.toml",
        more="The same command resumes it where it was stopped, within a run too. A folder per run, table.md, "
        "table.csv, table.tex, curves.png, curves.pdf and logs/ are written to <sweep.dir>/<sweep.name>/. Keys are set "
        "for all runs.",
        keys="sweep",
        examples=("fedddp sweep sweeps/quickstart --dry-run", 'fedddp sweep mine.toml --only=iid --only="seed=[01]"'),
        configured=True,
        stops=True,
    ),
    "reproduce": Command(
        about="run a published table and compare: theirs, ours, the difference",
        module="fedddp.cli.reproduce.command",
        options=options.reproduce,
        takes="NAME",
        more="mcmahan: rounds to 99% of the CNN on MNIST (McMahan et al. 2017). niid_mnist: the MNIST rows of "
        "NIID-Bench. flgo: the Dirichlet column of FLGo-Bench's MNIST. Each is a sweep in the package, and "
        "resumes like one; the full tables take hours and need MNIST in data.root. Writes reproduced.md and "
        "reproduced.json, with date, commit and machine, beside the sweep's tables. Keys are set for all runs.",
        examples=("fedddp reproduce mcmahan --quick", "fedddp reproduce niid_mnist --data.root=data --sweep.jobs=2"),
        configured=True,
        stops=True,
    ),
    "tune": Command(
        about="choose parameters by federated cross-validation",
        module="fedddp.cli.tune",
        options=options.tune,
        more="Each client's own examples are cut into folds. For every combination of the grid and every fold, the "
        "clients train together without it, and the result is scored on it where it lies: only counts leave a rank. "
        "The test set is not used. Writes results.json, results.md and chosen.toml, which follows the file in a "
        "command of fedddp train.",
        examples=(
            "fedddp tune --grid lr=0.05,0.1 --grid batch-size=10,50 --folds=3",
            "fedddp tune --range lr=0.001:1:log --grid batch-size=10,50 --trials=20",
        ),
        configured=True,
        stops=True,
    ),
    "audit": Command(
        about="bound epsilon from below by what canaries give away, beside what is claimed",
        module="fedddp.cli.audit",
        options=options.audit,
        more="The run takes place as configured, but clients upload canaries (privacy.level=client), or the gradients "
        "of examples are canaries (privacy.level=example), each with probability 1/2, and whoever sees what is "
        "released guesses which. The same without noise shows what the audit could find. The exit code is 1 if a lower "
        "bound exceeds what is claimed at that delta, or if missing noise would not have been noticed.",
        examples=(
            "fedddp audit --model=mlp --clients=100 --privacy.level=client --privacy.noise_multiplier=1",
            "fedddp audit --clients=20 --privacy.level=example --privacy.noise_multiplier=1 --rounds=1",
        ),
        configured=True,
        stops=True,
    ),
    "generate": Command(
        about="draw images with a trained conditional GAN, or continue a text with a language model",
        module="fedddp.cli.generate",
        options=options.generate,
        takes="RUN CLASSES|TEXT",
        more="Text is continued by the model of the best round, by --length tokens or until it ends a text. Of a GAN "
        "the newest checkpoint is used; --judge reports how many drawings a classifier takes for the class that was "
        "asked for. Keys replace those of the run, should its data be elsewhere by now.",
        examples=(
            "fedddp generate runs/gan 0123456789 --judge=runs/cnn",
            'fedddp generate runs/smollm2 "To be, or not" --length=60',
        ),
        configured=True,
    ),
    "export": Command(
        about="write the model of a run for other programs, with a model card",
        module="fedddp.cli.export.command",
        options=options.export,
        takes="RUN",
        more="state_dict and safetensors are weights, by the names of the module; onnx and exported-program are graphs "
        "that take inputs as the dataset has them (pixels uint8, any number of examples); hf is a folder for "
        "from_pretrained, of model.name=hf:NAME; peft one with the adapters of model.lora. README.md beside it says "
        "what goes in and comes out, how the model was trained, its metrics, its privacy and SHA-256 sums.",
        examples=(
            "fedddp export runs/fedavg --to=onnx",
            "fedddp export runs/ditto --to=safetensors --client=3 --out=model-of-3",
        ),
    ),
    "predict": Command(
        about="predict for files by the model of a run",
        module="fedddp.cli.predict",
        options=options.predict,
        takes="RUN FILE ...",
        more="Images; the array x of an .npz file; rows of .csv and .parquet files, whose columns are found by name "
        "and scaled as in training (the table of the run is read again); of a run on next characters, .txt files with "
        "the beginning of a text, which is continued. Keys replace those of the run: --data.root, should its table be "
        "elsewhere by now; --task.sample_length, the length of a continuation.",
        examples=(
            "fedddp predict runs/fedavg digit.png other.png",
            "fedddp predict runs/hospitals patients.csv --out=predicted.csv",
        ),
        configured=True,
    ),
    "doctor": Command(
        about="report what the network, processes and files of a run protect",
        module="fedddp.cli.doctor.report",
        options=options.doctor,
        more="Each finding is ok, warn (what is not protected, and what to do about it) or fail (the run would be "
        "refused, or a secret lies open); the exit code is 1 if something fails. Run it on each machine, or under "
        "torchrun as the ranks see it. It starts two ranks and looks at their sockets. Where the launcher's variables "
        "name other machines it meets them (start it on all at once) and compares clocks and folders. --bundle writes "
        "all of it to a file for whoever helps: without keys, and without values that look like secrets.",
        examples=("fedddp doctor --privacy.secure_aggregation.enabled=true", "fedddp doctor --bundle=report.json"),
        configured=True,
        ranks=True,
    ),
    "split": Command(
        about="divide a dataset into one folder per client and a public one",
        module="fedddp.cli.split",
        options=options.split,
        more="Of the keys, data.*, task.name and run.seed count. Copy public/ and one client's folder to the machine "
        "of its owner, and train there with --data.name=parts --data.root=FOLDER.",
        examples=("fedddp split --out=parts --data=mnist --clients=4",),
        configured=True,
    ),
    "keygen": Command(
        about="make signature keys and rosters for secure aggregation",
        module="fedddp.cli.keygen",
        options=options.keygen,
        more="On one machine, to try it: --parties=4 writes rank-0.key to rank-3.key and roster.toml. In a deployment "
        "no key leaves its owner: each party runs --rank=K and sends rank-K.pub to the others, who compare it over a "
        "second channel; --merge *.pub makes the roster, the same file on every party. No file is ever replaced.",
        examples=("fedddp keygen --parties=4 --out=keys",),
    ),
    "demo": Command(
        about="demonstrate what updates give away, and what protects them",
        module="fedddp.cli.demo",
        options=options.demo,
        takes="NAME [OPTION ...]",
        more="The demonstrations are in examples/privacy of the repository.",
        examples=("fedddp demo inversion",),
    ),
    "schema": Command(
        about="print the JSON Schema of configuration files, for editors",
        module="fedddp.cli.reference",
        examples=("fedddp schema > fedddp.schema.json",),
        answers="answer",
    ),
    "completion": Command(
        about="print a completion script for bash or zsh",
        module="fedddp.cli.completion",
        options=options.completion,
        takes="bash|zsh",
        examples=('eval "$(fedddp completion bash)"',),
        answers="answer",
    ),
    "help": Command(
        about="describe a command, a section, a choice or a key",
        module="fedddp.cli.help",
        options=options.help,
        takes="[TOPIC]",
        examples=("fedddp help model", "fedddp help algorithm.scaffold", "fedddp help run.rounds"),
        answers="answer",
    ),
}
"""All commands by name, in the order in which they are listed."""
