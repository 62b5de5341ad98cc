"""fedddp.registry.spelling: what a word that is no name or key here most likely means."""

import pytest

import fedddp
from fedddp.config import Config, UsageError, build, parse
from fedddp.registry.choice import keys_of
from fedddp.registry.spelling import KEYS, NAMES
from fedddp.setup.load import load_data
from fedddp.setup.resolve import resolve

MEANT = [
    ("--client.lr=0.1", "'client.optimizer.lr'"),
    ("--client.learning_rate=0.1", "'client.optimizer.lr'"),
    ("--algorithm.lr=0.1", "'algorithm.server_optimizer.lr'"),
    ("--server_lr=0.1", "'algorithm.server_optimizer.lr'"),
    ("--alpha=0.1", "'data.partition.alpha' with data.partition.name=dirichlet"),
    ("--beta=0.1", "'data.partition.alpha' with data.partition.name=dirichlet"),
    ("--data.alpha=0.1", "'data.partition.alpha' with data.partition.name=dirichlet"),
    ("--data.partition.beta=0.1", "'data.partition.alpha' with data.partition.name=dirichlet"),
    ("--data.partition.alpha=0.1", "data.partition.name=dirichlet"),
    ("--algorithm.mu=0.1", "algorithm.name=fedprox"),
    ("--mu=0.1", "'algorithm.mu' with algorithm.name=fedprox"),
    ("--num_clients=4", "'data.partition.num_clients'"),
    ("--client.epochs=4", "'client.local_epochs'"),
    ("--client.batchSize=4", "'batch_size'"),
    ("--gpu=true", "'run.device'"),
    ("--dataset=mnist", "'data.name'"),
    ("--privacy.epsilon=1", "'privacy.target_epsilon'"),
    ("--algorithm.name=fedadam", "'fedavg' with algorithm.server_optimizer.name=adam"),
    ("--algorithm.name=FedAvgM", "'fedavg' with algorithm.server_optimizer.momentum=0.9"),
    ("--algorithm.name=FedYogi", "'fedavg' with algorithm.server_optimizer.name=yogi"),
    ("--algorithm.name=Scaffold", "'scaffold'"),
    ("--algorithm.name=q-FFL", "'qffl'"),
    ("--data.partition.name=noniid", "'dirichlet'"),
    ("--data.partition.name=non-IID", "'dirichlet'"),
    ("--data.partition.name=LDA", "'dirichlet'"),
    ("--data.partition.name=I.I.D.", "'iid'"),
    ("--client.optimizer.name=SGD", "'sgd'"),
    ("--data.name=MNIST", "'mnist'"),
    ("--data.name=CIFAR-10", "'cifar10'"),
    ("--data.name=FashionMNIST", "'fashion_mnist'"),
    ("--model.name=2NN", "'mlp'"),
    ("--model.name=LeNet-5", "'lenet'"),
    ("--loss.name=CE", "'cross_entropy'"),
    ("--aggregation.rule.name=RFA", "'geometric_median'"),
    ("--aggregation.compression.name=topk", "'top_k'"),
]


@pytest.mark.parametrize(("word", "meant"), MEANT)
def test_words_of_papers_and_other_programs_are_understood(word, meant):
    with pytest.raises(UsageError) as told:
        load_data(resolve(build(*parse([word]).layers), fedddp.comm.world.Place()))
    line = str(told.value)
    assert meant in line.partition("; ")[2]
    assert "\n" not in line


def test_keywords_of_the_api_too():
    with pytest.raises(UsageError, match=r"lr: unknown keyword; did you mean 'client.optimizer.lr'"):
        fedddp.run(lr=0.1)


def test_what_the_tables_lead_to_exists():
    pairs = list(keys_of(Config))
    keys = {key for key, _ in pairs}
    assert set(KEYS.values()) <= keys
    for meant in NAMES.values():
        for word in meant.partition(" with ")[2].split(" and "):
            assert not word or word.partition("=")[0] in keys
    assert ("data.partition.alpha", "data.partition.name=dirichlet") in pairs
    assert ("run.rounds", "") in pairs
