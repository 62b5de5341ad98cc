"""Suggest the name or key that a misspelt one means; knows the names in papers and other programs."""

import difflib
import re
from collections.abc import Collection, Iterable

NAMES = {
    "noniid dir lda latentdirichlet heterogeneous hetero": "dirichlet",
    "pathological": "shards",
    "homogeneous homo uniform": "iid",
    "fedadam": "fedavg with algorithm.server_optimizer.name=adam",
    "fedyogi": "fedavg with algorithm.server_optimizer.name=yogi",
    "fedadagrad": "fedavg with algorithm.server_optimizer.name=adagrad",
    "fedavgm": "fedavg with algorithm.server_optimizer.momentum=0.9",
    "fedsgd": "fedavg with client.batch_size=0",
    "diloco": "fedavg with client.local_steps and algorithm.server_optimizer.nesterov=true",
    "streaming streamdiloco": "streaming_diloco",
    "localsgd": "fedavg with client.local_steps",
    "qfedavg": "qffl",
    "2nn": "mlp",
    "lenet5": "lenet",
    "convnet": "cnn",
    "logreg logisticregression softmaxregression": "logistic",
    "ce nll": "cross_entropy",
    "hinge": "multiclass_hinge",
    "average": "mean",
    "rfa geomed": "geometric_median",
    "trmean": "trimmed_mean",
    "signflipping": "sign_flip",
    "labelflipping": "label_flip",
    "topk": "top_k",
    "randk": "random_k",
    "qsgd quantization": "int8",
    "cifar": "cifar10",
    "fmnist": "fashion_mnist",
}
"""From other names (without case, dashes and dots) to those here; after "with": a further setting."""

SHORT = {
    "rounds": "run.rounds",
    "seed": "run.seed",
    "data": "data.name",
    "clients": "data.partition.num_clients",
    "model": "model.name",
    "epochs": "client.local_epochs",
    "batch-size": "client.batch_size",
    "lr": "client.optimizer.lr",
    "algorithm": "algorithm.name",
}
"""From short forms on a command line to keys."""

KEYS = {
    "learningrate clientlr locallr": "client.optimizer.lr",
    "serverlr globallr": "algorithm.server_optimizer.lr",
    "wd l2 decay": "client.optimizer.weight_decay",
    "lr": "client.optimizer.lr",
    "momentum": "client.optimizer.momentum",
    "optimizer optim": "client.optimizer.name",
    "alpha beta diralpha dirichletalpha concentration": "data.partition.alpha",
    "epochs localepochs localep": "client.local_epochs",
    "localiterations localiters steps": "client.local_steps",
    "bs batch localbs": "client.batch_size",
    "commrounds globalrounds numrounds communicationrounds": "run.rounds",
    "clients nclients numusers users parties nparties": "data.partition.num_clients",
    "frac samplefraction participation joinratio": "cohort.fraction",
    "dataset": "data.name",
    "datadir dataroot datapath": "data.root",
    "outputdir outdir logdir output": "run.dir",
    "gpu cuda": "run.device",
    "randomseed": "run.seed",
    "eps epsilon targetepsilon": "privacy.target_epsilon",
    "noise": "privacy.noise_multiplier",
    "maxgradnorm": "privacy.clip",
    "gradclip clipgrad maxnorm": "client.clip_norm",
}
"""From other names of keys to those here."""


def plain(word: str) -> str:
    """A word in lower case, without separators."""
    return re.sub(r"[\W_]+", "", word).lower()


def synonyms(table: dict[str, str], word: str) -> str | None:
    """The entry of ``table`` for ``word``; None if there is none."""
    return next((meant for words, meant in table.items() if plain(word) in words.split()), None)


def suggestion(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?``, or nothing if no known name is similar."""
    names = list(known)
    same = [name for name in names if plain(name) == plain(word) != ""]
    meant = synonyms(NAMES, word) or ""
    if not same and meant.partition(" with ")[0] in names:
        name, _, more = meant.partition(" with ")
        return f"; did you mean {name!r}{f' with {more}' if more else ''}?"
    near = same or difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    return f"; did you mean {near[0]!r}?" if near else ""


def key_suggestion(path: str, known: Collection[str], keys: Iterable[tuple[str, str]]) -> str:
    """The suggestion for a dotted key, whose section has the keys ``known``.

    ``keys``: all dotted keys, each with what has to be chosen for it to be there ("algorithm.name=feddyn"), or empty.
    Of those with the same last word, the one with the longest common beginning with ``path`` is suggested.
    """
    section, _, last = path.rpartition(".")
    near = suggestion(last, known)
    if any(plain(name) == plain(last) for name in known):
        return near
    meant = synonyms(KEYS, last)
    same = [pair for pair in keys if pair[0] == meant or plain(pair[0].rpartition(".")[2]) == plain(last)]
    if not same:
        return near or ("" if section else _short_suggestion(last))

    def nearness(pair: tuple[str, str]) -> tuple[int, bool, bool]:
        equal = [a == b for a, b in zip(section.split("."), pair[0].split("."), strict=False)]
        return (equal.index(False) if False in equal else len(equal), pair[0] == meant, not pair[1])

    key, condition = max(same, key=nearness)
    if key == path:
        there = f"the keys here are {', '.join(known)}" if known else "this section has no keys"
        return f"; {there}; {condition} has it" if condition else near
    return f"; did you mean {key!r}{f' with {condition}' if condition else ''}?"


def _short_suggestion(word: str) -> str:
    """The key of the short form that ``word`` is the beginning of, or nearly is."""
    near = [form for form in SHORT if len(word) > 2 and form.startswith(word)]
    near = near or difflib.get_close_matches(word, SHORT, n=1, cutoff=0.7)
    return f"; did you mean {SHORT[near[0]]!r}?" if near else ""
