"""What a run logs about itself at start, and the caveat beside its privacy figures."""

from collections.abc import Iterator

from ..attacks import NoAttack
from ..config import ResolvedConfig, flatten, to_dict
from .levels import LEVELS


def start_messages(config: ResolvedConfig) -> Iterator[str]:
    """Yield what a reader of the log has to know about privacy, attacks and the population, a line each."""
    keys = config.privacy
    if config.data.name != "parts":
        yield (
            f"simulation: every rank can read all of {config.data.name}; where ranks must not see each other's, "
            "divide it first (fedddp split)"
        )
    if keys.secure_aggregation.enabled and not keys.secure_aggregation.roster:
        yield "secure aggregation without a roster: keys are made at start, and nobody is authenticated"
    level = LEVELS[config.privacy.level]
    if level.unit:
        noise = f"clip {keys.clip:g}, sigma {config.noise_multiplier:g}{caveat(config)}"
        yield f"private at {level.unit} level: {noise}"
    if level.clips_updates and not keys.secure_aggregation.enabled:
        yield (
            "client level without secure aggregation: epsilon is that of the sums; a neighbour in the ring sees one "
            "rank's, which has that rank's part of the noise only"
        )
    if config.attack != NoAttack():
        yield f"attack {flatten(to_dict(config))['attack.name']}: {config.adversary}"
        if config.evaluate.personal_every:
            benign = config.num_clients - config.attack.num_clients
            yield f"personal accuracies are of the {benign} benign clients, those with two examples or more"
    if config.num_clients == 1:
        yield (
            "one client owns all training examples, so nothing is federated; start torchrun --nproc_per_node=4 for a "
            "client per rank, or set data.partition.num_clients"
        )


def caveat(config: ResolvedConfig) -> str:
    """Return what has to stand beside every privacy figure of a run whose noise can be predicted; else nothing."""
    seeded = config.privacy.randomness == "seeded"
    return "; but privacy.randomness=seeded: this noise can be predicted and guarantees nothing" if seeded else ""
