"""fedddp.evaluation.server: scores against a direct computation."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fedddp.clients.folded import FoldedModel
from fedddp.comm import Comm, Place
from fedddp.data import Examples
from fedddp.evaluation import server as evaluation
from fedddp.evaluation.server import Evaluator, Score, scoring_model
from fedddp.federation import federate
from fedddp.flat import FlatModule, flatten
from fedddp.tasks import Task
from fedddp.tasks.metrics import Target
from tests.helpers.support import assemble
from tests.helpers.zoo import FOLDED, SIZES, Tied, Viewing, dataset, start_of, task_of

NUM_CLASSES = 10


def model():
    """Normalisation and dropout, so that training mode would show."""
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 20), nn.BatchNorm1d(20), nn.Dropout(0.5), nn.Linear(20, 10))


@pytest.fixture
def test_set(digits):
    """450 digits: two batches of 200 and a short one. No 7 among them."""
    rows = (digits.test.y != 7).nonzero().flatten()[:450]
    return Examples(digits.test.x[rows], digits.test.y[rows])


@pytest.fixture
def normalize(digits):
    return digits.normalizer(torch.float32)


@pytest.fixture
def evaluator(test_set, normalize):
    return lambda **more: Evaluator(Task(model, NUM_CLASSES), test_set, normalize, Comm.alone(), **more)


def some_model():
    torch.manual_seed(0)
    module = model()
    module[2].running_mean.uniform_(-1, 1)
    module[2].running_var.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("where", ["rank0", "sharded"])
def test_score_is_what_a_direct_computation_gives(evaluator, test_set, normalize, where):
    module, y = some_model().eval(), test_set.y
    with torch.no_grad():
        outputs = module(normalize(test_set.x))
    losses, predicted = nn.functional.cross_entropy(outputs, y, reduction="none"), outputs.argmax(dim=1)
    score = evaluator(where=where).score(flatten(module))
    assert score.accuracy == (predicted == y).double().mean().item()
    assert score.loss == pytest.approx(losses.double().mean().item(), abs=1e-6)
    expected = [[((y == true) & (predicted == p)).sum().item() for p in range(10)] for true in range(10)]
    assert score.confusion.tolist() == expected
    for label in range(10):
        own = y == label
        assert (score.per_class[label].isnan()) == (label == 7)
        if label != 7:
            assert score.per_class[label].item() == (predicted == y)[own].double().mean().item()
    wrong = (predicted != y).nonzero().flatten()
    worst = wrong[losses[wrong].argsort(descending=True)][:16]
    assert [m.loss for m in score.mistakes] == pytest.approx(losses[worst].tolist(), abs=1e-5)
    assert [(m.label, m.predicted) for m in score.mistakes] == list(
        zip(y[worst].tolist(), predicted[worst].tolist(), strict=True)
    )
    assert all(torch.equal(m.image, test_set.x[i]) for m, i in zip(score.mistakes, worst, strict=True))


def test_a_model_without_mistakes_has_none_to_show(normalize):
    """The label is written on the image: nothing to get wrong."""
    images = Examples(torch.eye(3).view(3, 1, 1, 3), torch.arange(3))
    perfect = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(3, 3, bias=False)), 3)
    scorer = Evaluator(perfect, images, normalize, Comm.alone())
    score = scorer.score(torch.eye(3).flatten() * 100)
    assert (score.accuracy, score.mistakes) == (1.0, ())
    assert score.confusion.tolist() == torch.eye(3).tolist()
    wrong = scorer.score(-torch.eye(3).flatten())
    assert (wrong.accuracy, len(wrong.mistakes)) == (0.0, 3)


def test_a_model_that_is_not_finite_scores_chance_and_breaks_nothing(evaluator):
    score = evaluator().score(torch.full_like(flatten(model()), torch.nan))
    assert 0 <= score.accuracy < 0.3
    assert score.loss != score.loss
    assert score.mistakes == ()


def test_the_size_of_a_batch_does_not_matter(evaluator, monkeypatch):
    w, sizes, outputs = flatten(some_model()), [], Task.outputs
    score = evaluator().score(w)
    again = evaluator()
    monkeypatch.setattr(evaluation, "BATCH", 7)
    monkeypatch.setattr(Task, "outputs", lambda task, module, x, y: sizes.append(len(x)) or outputs(task, module, x, y))
    again = again.score(w)
    assert max(sizes) == 7
    assert torch.equal(again.confusion, score.confusion)
    assert again.loss == pytest.approx(score.loss, abs=1e-6)


def test_evaluation_changes_neither_model_nor_generator_nor_threads(evaluator):
    w = flatten(some_model())
    before, state, threads, scorer = w.clone(), torch.get_rng_state(), torch.get_num_threads(), evaluator()
    first = scorer.score(w)
    assert torch.equal(w, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert scorer.score(w).loss == first.loss


@pytest.mark.parametrize(
    ("every", "due"),
    [(1, [1, 2, 3, 4, 5, 6, 7]), (3, [3, 6, 7]), (0, [7]), (10, [7])],
)
def test_evaluation_is_due_every_so_often_and_after_the_last_round(evaluator, every, due):
    scorer = evaluator(every=every)
    assert [t for t in range(1, 8) if scorer.due(t, t == 7)] == due


def test_a_target_is_reached_at_its_value_and_never_without_one(evaluator):
    scores = [None, Score({"accuracy": 0.89}, 1.0, torch.eye(2)), Score({"accuracy": 0.9}, 1.0, torch.eye(2))]
    assert [evaluator(target=Target("accuracy", 0.9)).reached(score) for score in scores] == [False, False, True]
    assert not any(evaluator().reached(score) for score in scores)


def test_sharded_ranks_see_every_example_once(test_set, normalize):
    """Three ranks' confusion matrices add up to that of one; each is of every third example."""
    w, parts = flatten(some_model()), []

    class Rank(Comm):
        def all_reduce(self, x, purpose):
            parts.append(x.clone())
            return x

    for rank in range(3):
        comm = Rank(Place(), torch.device("cpu"), store=None, timeout=0.0)
        comm.rank, comm.world_size, comm.members = rank, 3, (0, 1, 2)
        Evaluator(Task(model, 10), test_set, normalize, comm, where="sharded").score(w)
    whole = Evaluator(Task(model, 10), test_set, normalize, Comm.alone(), where="sharded").score(w)
    total = sum(parts)
    assert torch.equal(total[:100].view(10, 10), whole.confusion)
    assert float(total[-2] / total[-1]) == pytest.approx(whole.loss, abs=1e-6)
    assert [int(part[:100].sum()) for part in parts] == [int(part[-1]) for part in parts] == [150, 150, 150]


@pytest.mark.parametrize("classes", [2, 100, 101, 5000])
def test_counts_grow_linearly_with_the_classes_above_a_hundred(classes, normalize):
    """What ranks send each other, and what a score holds: a matrix of at most 100 x 100 cells."""
    sent = []

    class Watched(Comm):
        def all_reduce(self, x, purpose):
            sent.append(len(x))

    comm = Watched(Place(), torch.device("cpu"), store=None, timeout=0.0)
    x, y = torch.eye(4).view(4, 1, 1, 4), torch.tensor([0, 1, classes - 1, classes - 1])
    task = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(4, classes, bias=False)), classes)
    weights = torch.zeros(classes, 4)
    weights[0, :], weights[1, 1], weights[classes - 1, 2] = 1, 9, 9  # the first three are right, the last is 0
    score = Evaluator(task, Examples(x, y), normalize, comm).score(weights.flatten())
    sides = classes if classes <= 100 else 0
    assert sent == [(sides**2 if sides else 2) + (2 if classes > 5 else 0) + 2]  # right among the first 5, of how many
    assert score.accuracy == 0.75
    assert score.confusion.shape == (sides, sides)
    assert [len(score.mistakes), score.mistakes[0].label, score.mistakes[0].predicted] == [1, classes - 1, 0]


@pytest.mark.parametrize(("size", "ranks"), [(1, 2), (1, 3), (2, 5), (3, 3)])
@pytest.mark.parametrize("classes", [10, 200])
def test_ranks_without_a_test_example_count_nothing(size, ranks, classes, test_set, normalize):
    """Their counts are zero, and the sum is the score of one rank that has all examples."""
    few, parts = Examples(test_set.x[:size], test_set.y[:size]), []
    task = Task(lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, classes)), classes)

    class Rank(Comm):
        def all_reduce(self, x, purpose):
            parts.append(x.clone())

    w = task.initial_params(0)
    for rank in range(ranks):
        comm = Rank(Place(), torch.device("cpu"), store=None, timeout=0.0)
        comm.rank, comm.world_size, comm.members = rank, ranks, tuple(range(ranks))
        score = Evaluator(task, few, normalize, comm).score(w)
        assert (score.accuracy is None) == (rank >= size)
    whole = Evaluator(task, few, normalize, Comm.alone()).score(w)
    total = sum(parts)
    assert [int(part[-1]) for part in parts] == [1] * size + [0] * (ranks - size)
    assert float(total[-2] / total[-1]) == pytest.approx(whole.loss)
    assert (total[:100].view(10, 10).trace() if classes == 10 else total[0]) / size == whole.accuracy


def test_flat_module_is_left_in_no_other_state_than_its_vector(evaluator):
    """The score of one model does not depend on which was scored before."""
    scorer, w = evaluator(), flatten(some_model())
    alone = scorer.score(w)
    scorer.score(FlatModule(model()).w)
    assert torch.equal(scorer.score(w).confusion, alone.confusion)


class Asking(nn.Sequential):
    """A forward of its own that looks at its layers."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 3, 8), nn.Flatten(), nn.Linear(3, 5))

    def forward(self, x):
        return super().forward(x) * self[0].in_channels


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        *((make, FoldedModel) for make in FOLDED.values()),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Linear(6, 5)), FlatModule),
        (Viewing, FlatModule),
        (Asking, FlatModule),
        (Tied, FlatModule),
        (lambda: Tied(same=True), FlatModule),
    ],
    ids=[*FOLDED, "batch norm", "a forward that views", "one that looks", "tied", "one layer by two names"],
)
def test_models_are_scored_with_folded_layers_where_that_is_the_same(make, kind):
    """The score is the plain module's, also far from the weights with which the two were compared."""
    task, x = task_of(make), dataset().train.x
    scored = scoring_model(lambda: task.model(0), torch.device("cpu"), x[:2])
    assert type(scored) is kind
    assert not scored.module.training
    for w in (start_of(make), torch.linspace(-1, 1, scored.spec.dim, dtype=torch.float64)):
        w[scored.spec.num_trainable :] = 1  # a variance
        plain = FlatModule(make().double())
        plain.load(w)
        scored.load(w)
        with torch.no_grad():
            torch.testing.assert_close(scored.module(x), plain.module.eval()(x), rtol=1e-9, atol=1e-9)


def test_a_folded_model_that_gives_something_else_is_not_used(monkeypatch):
    monkeypatch.setattr("fedddp.clients.folded.layer.FoldedLinear.product", lambda layer, x, y: y.fill_(1))
    task = task_of(FOLDED["mlp"], torch.float32)
    scored = scoring_model(lambda: task.model(0), torch.device("cpu"), dataset().train.x[:2].float())
    assert type(scored) is FlatModule


@pytest.mark.parametrize(("where", "load"), [("rank0", 8 // 3), ("sharded", 0)])
def test_what_rank_0_does_alone_counts_as_its_work(tmp_path, where, load):
    """A third of a training step for each test example, from the next round on."""
    f, server = assemble(
        tmp_path,
        dataset(),
        SIZES,
        task=task_of(FOLDED["logistic"], torch.float32),
        evaluate={"every": 1, "where": where},
        run={"rounds": 2},
    )
    asked, schedule = [], f.schedule
    told = type("Noting", (), {"mine": lambda _, cohort, n: asked.append(n) or schedule.mine(cohort, n)})()
    federate(replace(f, schedule=told), server)
    assert asked == [0, load]


def test_on_rank_0_nobody_waits_for_anybody(test_set, normalize):
    """No collective but the target's; the other ranks have no score and no test set."""

    class Alone(Comm):
        def all_reduce(self, *_):
            raise AssertionError("a collective")

        broadcast = barrier = any = all_reduce

    w = flatten(some_model())
    for rank, known in ((0, True), (1, False)):
        comm = Alone(Place(), torch.device("cpu"), store=None, timeout=0.0)
        comm.rank, comm.world_size = rank, 2
        scorer = Evaluator(Task(model, 10), test_set, normalize, comm, where="rank0")
        score = scorer.score(w)
        assert not scorer.reached(score)
        assert (score is not None) == known
        assert scorer.load == 450 // 3
