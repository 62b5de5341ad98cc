"""Describe a run in plain words, for whoever looks at its curves."""

from torch import Tensor

from ..config import ResolvedConfig, flatten, to_dict
from ..data import Excerpt
from .levels import level_for
from .prepared import Prepared


def about(p: Prepared) -> str:
    """Return a run in plain words, as Markdown: who learns what from which data, and what leaves the machines."""
    assert p.output is not None
    config, names = p.config, flatten(to_dict(p.config))
    n, m, sizes = config.num_clients, config.cohort_size, p.data.sizes
    each = f"all {n:,} clients" if m == n else f"{m:,} of {n:,} clients"
    batches = f"in batches of {config.client.batch_size}" if config.client.batch_size else "on all examples at once"
    lines = {
        "Data": f"{names['data.name']}, {int(sizes.sum()):,} training examples of {many(n, 'client')}, "
        f"{span(sizes)} each, partition {names['data.partition.name']}{_labels(p.output.counts)}",
        "Model": f"{names['model.name']}, {p.spec.num_trainable:,} trained parameters",
        "Round": f"{each} train for {local_work(config)} {batches}, "
        f"and {names['algorithm.name']} makes one model of theirs; {many(config.run.rounds, 'round')}",
        "Ranks": f"{many(p.place.world_size, 'process')} on {p.device.type}",
        "What leaves a machine": _sent(p),
        "Privacy": _privacy(p),
    }
    return "".join(f"- **{name}**: {text}\n" for name, text in lines.items())


def _labels(owners: Excerpt) -> str:
    if not owners.by_label or owners.counts.shape[1] < 2:
        return ""
    low, high = ((owners.counts > 0).sum(axis=1).min(), (owners.counts > 0).sum(axis=1).max())
    return f", {low if low == high else f'{low} to {high}'} of {owners.counts.shape[1]} labels each"


def _sent(p: Prepared) -> str:
    keys = p.config.privacy
    size = f"{p.spec.dim * p.spec.dtype.itemsize / 1e3:,.0f} kB"
    if p.place.world_size == 1:
        return "nothing: one process simulates all clients"
    if keys.level == "client":
        return "noisy sums of updates; neither losses nor who was drawn"
    masked = keys.secure_aggregation.enabled
    update = f"{'masked ' if masked else ''}sums of its clients' updates, a model of {size}"
    if keys.level == "example":
        return f"{update}, trained with noise; how many clients took part"
    beside = "the sum of their losses" if masked else "each client's loss, accuracy and length of its update"
    return f"{update}, and {beside}; no example"


def _privacy(p: Prepared) -> str:
    unit = level_for(p.config.privacy).unit
    if not unit:
        return "no noise, so no epsilon"
    return f"differentially private at {unit} level, noise multiplier {p.config.noise_multiplier:g}"


def span(sizes: Tensor) -> str:
    """Return the numbers of examples of clients, [N], from the least to the most."""
    return f"{sizes.min():,}" if sizes.min() == sizes.max() else f"{sizes.min():,} to {sizes.max():,}"


def local_work(config: ResolvedConfig) -> str:
    """Return how long a client trains in a round."""
    steps = config.client.local_steps
    return many(steps, "step") if steps else many(config.client.local_epochs, "epoch")


def many(number: int, name: str) -> str:
    """Return a number with its noun."""
    return f"{number:,} {name}{'' if number == 1 else 'es' if name.endswith('s') else 's'}"
