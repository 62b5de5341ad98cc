"""Divide a dataset into one folder per client and a public one, for ranks that are to hold nothing else.

What lies in the folders, and what the public one tells: `fedddp.data.parts`.
"""

from argparse import Namespace
from pathlib import Path

from ..config import UsageError, build, to_dict
from ..data.parts import PUBLIC, train_file, write
from ..setup.load import load_data
from .outcome import asked


def run(args: Namespace) -> None:
    """Divide the data that ``args`` name; see `fedddp.cli.options.split`."""
    config, out = build(*asked(args).layers), args.out
    data = config.data
    if data.name == "parts":
        raise UsageError(f"data.name='parts': is divided already; name the dataset to divide (data.root={data.root!r})")
    if not data.partition.num_clients:
        raise UsageError("data.partition.num_clients=0: say how many clients there are, each gets a folder")
    dataset, partition = load_data(config)
    table = to_dict(config)["data"]["partition"]
    seed = config.run.seed if data.partition.seed is None else data.partition.seed
    try:
        public = write(out, dataset, partition, data=data.name, table=table, seed=seed)
    except ValueError as error:
        raise UsageError(str(error)) from None
    except OSError as error:
        raise UsageError(f"--out={out}: cannot be written ({error.strerror})") from None
    first, last = (Path(train_file(k)).parent for k in (0, public.num_clients - 1))
    print(
        f"{out}: {first} to {last} of {min(public.sizes)} to {max(public.sizes)} examples of {data.name}, and {PUBLIC} "
        f"with {len(dataset.test)} test examples\n"
        f"on each machine: {PUBLIC}, its own client's folder, and --data.name=parts --data.root={out}"
    )
