"""fedddp.data.skew: inputs that look different from client to client, wherever and however they are looked up."""

import numpy as np
import pytest
import torch

from fedddp.cli import show
from fedddp.clients import SequentialTrainer
from fedddp.comm.world import Place
from fedddp.config import UsageError, build
from fedddp.data import SKEWS, ClientData, Examples, Normalizer, NoSkew, Partition
from fedddp.data.parts import Parts, write
from fedddp.data.skew import Noise, Rotation
from fedddp.optim import SGD
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve
from tests.helpers.commands import command
from tests.helpers.support import few_digits
from tests.helpers.zoo import FOLDED, start_of, task_of, trainers, training

N, EACH = 6, 5
CPU = torch.device("cpu")
SEVERAL = [Noise(sigma=0.4), Rotation(), Rotation(angles=(0.0, 30.0))]


def digits():
    return few_digits(N * EACH).train


def data(skew, *, rank=0, world_size=1, placement="shared", dtype=torch.float32, seed=0, examples=None):
    examples = examples or digits()
    partition = Partition.dealt(np.arange(N * EACH), np.full(N, EACH))
    normalize = Normalizer((0.1307,), (0.3081,), dtype, CPU)
    where = {"rank": rank, "world_size": world_size, "placement": placement}
    return ClientData(examples, partition, normalize, **where, skew=skew, seed=seed)


def looked_up(held, client):
    """All of a client's normalised inputs, by `examples`."""
    return held.normalize(held.examples(client)[0])


@pytest.mark.parametrize("skew", SEVERAL, ids=repr)
def test_both_look_ups_and_both_placements_agree(skew):
    whole, rest = data(skew), [data(skew, rank=r, world_size=2, placement="home") for r in range(2)]
    index = torch.tensor([[[4, 0, 0]], [[2, 4, 1]]])  # [T, K, B]
    for client in range(N):
        own = looked_up(whole, client)
        assert torch.equal(looked_up(rest[client % 2], client), own)
        for held in (whole, rest[client % 2]):
            assert torch.equal(held.gather([client], index)[0][:, 0], own[index[:, 0]])
    together = whole.gather([3, 1], index.expand(2, 2, 3))[0]
    for k, client in enumerate((3, 1)):
        assert torch.equal(together[:, k], looked_up(whole, client)[index[:, 0]])


@pytest.mark.parametrize("skew", SEVERAL, ids=repr)
def test_labels_stay_and_inputs_do_not(skew):
    plain, skewed = data(None), data(skew)
    assert torch.equal(plain.examples(5)[1], skewed.examples(5)[1])
    assert not torch.allclose(looked_up(plain, 5), looked_up(skewed, 5), atol=0.1)


def test_without_a_skew_examples_stay_as_the_dataset_has_them():
    for skew in (None, NoSkew()):
        x, _ = data(skew).examples(2)
        assert x.dtype == torch.uint8
        assert torch.equal(x, digits().x[2 * EACH : 3 * EACH])


# -- noise --------------------------------------------------------------------------------------------------------


def noise_of(client, **more):
    return looked_up(data(Noise(sigma=0.3), **more), client) - looked_up(data(None, **more), client)


def test_noise_grows_from_client_to_client_up_to_sigma():
    """784 EACH numbers: the deviation's own standard error is 1.1%. A pixel's unit is 1/0.3081 once normalised."""
    for client in range(N):
        expected = 0.3 * (client + 1) / N / 0.3081
        assert noise_of(client).std().item() == pytest.approx(expected, rel=0.06)
        assert abs(noise_of(client).mean().item()) < 0.06 * expected


def test_noise_is_the_examples_own():
    first, again, other = noise_of(3), noise_of(3), noise_of(3, seed=1)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=0.01)
    scaled = torch.cat([noise_of(k) / (k + 1) for k in range(N)]).flatten(1)
    assert abs(torch.corrcoef(scaled) - torch.eye(N * EACH)).max() < 0.2  # no two alike: a deviation is 1/28


def test_noise_does_not_depend_on_the_precision():
    single, double = noise_of(4), noise_of(4, dtype=torch.float64)
    assert torch.allclose(single.double(), double, atol=1e-5)


def test_noise_is_of_given_size_on_floating_inputs_too():
    examples = Examples(torch.zeros(N * EACH, 3, 8, 8), torch.zeros(N * EACH, dtype=torch.long))
    x = looked_up(data(Noise(sigma=2.0), examples=examples), N - 1)
    assert x.std().item() == pytest.approx(2.0, rel=0.1)


# -- rotation -----------------------------------------------------------------------------------------------------


def test_clusters_are_turned_by_right_angles_exactly():
    plain, turned = data(None), data(Rotation())
    for client in range(N):
        assert torch.equal(looked_up(turned, client), looked_up(plain, client).rot90(client % 4, (2, 3)))


def test_other_angles_turn_the_same_way_and_let_in_black():
    """By 89.999 degrees nearly as by 90; a white image's corners become black."""
    almost, exactly = (data(Rotation(angles=(angle,))) for angle in (89.999, 90.0))
    assert torch.allclose(looked_up(almost, 1), looked_up(exactly, 1), atol=0.01)
    white = Examples(torch.full((N * EACH, 1, 28, 28), 255, dtype=torch.uint8), torch.zeros(N * EACH, dtype=torch.long))
    turned = looked_up(data(Rotation(angles=(45.0,)), examples=white), 0)
    black, brightest = -0.1307 / 0.3081, (1 - 0.1307) / 0.3081
    assert turned[0, 0, 0, 0].item() == pytest.approx(black, abs=1e-5)
    assert turned[0, 0, 14, 14].item() == pytest.approx(brightest, abs=1e-5)


def test_only_square_images_turn_by_a_quarter():
    wide = Examples(torch.zeros(N * EACH, 1, 4, 6, dtype=torch.uint8), torch.zeros(N * EACH, dtype=torch.long))
    with pytest.raises(ValueError, match=r"^data\.skew\.angles=\[90\.0\]: these turn square images .* \[1, 4, 6\]"):
        data(Rotation(angles=(90.0,)), examples=wide)
    upside_down = data(Rotation(angles=(180.0,)), examples=wide)
    assert looked_up(upside_down, 0).shape == (EACH, 1, 4, 6)
    vectors = Examples(torch.zeros(N * EACH, 7), torch.zeros(N * EACH, dtype=torch.long))
    with pytest.raises(ValueError, match=r"inputs are \[7\]; use data\.skew\.name=none or noise$"):
        data(Rotation(angles=(0.0,)), examples=vectors)


# -- in a run -----------------------------------------------------------------------------------------------------


def test_training_at_once_sees_what_training_one_by_one_sees():
    examples = Examples(torch.randint(256, (N * EACH, 1, 8, 8), generator=torch.Generator().manual_seed(0)).byte(),
                        torch.arange(N * EACH) % 5)  # fmt: skip
    make, held = FOLDED["mlp"], data(Noise(sigma=0.5), dtype=torch.float64, examples=examples)
    sequential, batched, _ = trainers(make, width=N, data=held)
    start = start_of(make)
    both = batched.on(range(N), 0).train(start).delta
    one_by_one = torch.cat([sequential.on((k,), 0).train(start).delta for k in range(N)])
    assert torch.allclose(both, one_by_one, rtol=1e-9, atol=1e-11)
    plain = data(None, dtype=torch.float64, examples=examples)
    unskewed = SequentialTrainer(task_of(make), plain, training(SGD(lr=0.1), local_epochs=2, batch_size=5, seed=3))
    assert not torch.allclose(unskewed.on((5,), 0).train(start).delta[0], one_by_one[5], rtol=0.1)


def test_divided_data_are_skewed_alike(tmp_path):
    """A client has the same inputs whether its rank holds everything or its own folder only."""
    dataset = few_digits(N * EACH)
    partition = Partition.dealt(np.arange(N * EACH)[::-1].copy(), np.full(N, EACH))
    write(tmp_path / "parts", dataset, partition, data="mnist-mini", table={"name": "iid"}, seed=0)
    normalize, how = dataset.normalizer(torch.float32), {"skew": Noise(sigma=0.3), "seed": 4}
    whole = ClientData(dataset.train, partition, normalize, placement="shared", **how)
    for rank in range(3):
        own, divided = Parts().divided(tmp_path / "parts", rank, 3)
        held = ClientData(own.train, divided, own.normalizer(torch.float32), rank=rank, world_size=3, **how)
        for client in range(rank, N, 3):
            assert torch.equal(looked_up(held, client), looked_up(whole, client))


def test_skew_is_a_section_that_reaches_the_clients(tmp_path):
    sections = {
        "run": {"dir": str(tmp_path), "threads": 1, "device": "cpu", "seed": 2},
        "data": {
            "name": "synthetic",
            "args": {"num_train": 30, "num_test": 2},
            "partition": {"num_clients": 6},
            "skew": {"name": "rotation", "angles": [180]},
        },
        "model": {"name": "logistic"},
    }
    prepared = prepare(resolve(build(sections), Place()), Place())
    sections["data"].pop("skew")
    plain = prepare(resolve(build(sections), Place()), Place())
    assert torch.equal(looked_up(prepared.data, 3), looked_up(plain.data, 3).flip(2, 3))
    assert prepared.signature["data.skew.name"] == "'rotation'"
    assert prepared.signature != plain.signature


def test_a_skew_that_cannot_be_is_refused_by_key(tmp_path):
    with pytest.raises(UsageError, match=r"data\.skew\.sigma"):
        build({"data": {"skew": {"name": "noise", "sigma": 0}}})
    with pytest.raises(UsageError, match=r"data\.skew\.name.*'none', 'noise', 'rotation'"):
        build({"data": {"skew": {"name": "nose"}}})
    with pytest.raises(UsageError, match=r"data\.skew\.angles"):
        build({"data": {"skew": {"name": "rotation", "angles": []}}})
    assert set(SKEWS) == {"none", "noise", "rotation"}


def test_show_draws_images_as_clients_see_them(tmp_path, monkeypatch, capsys):
    drawn = {}

    def images(shown):
        drawn.update(shown)
        return figure(shown)

    figure = show.figures.images
    monkeypatch.setattr(show.figures, "images", images)
    monkeypatch.chdir(tmp_path)
    words = ["--data.partition.num_clients=5", "--data.skew.name=rotation", "--data.skew.angles=[0,180]"]
    small = ["--data.name=synthetic", "--data.args.num_train=40", "--data.args.num_test=1"]
    assert command("show")([*small, *words, "--images=images.png"]) == 0
    assert "written to images.png" in capsys.readouterr().out
    assert (tmp_path / "images.png").stat().st_size > 1000
    assert [len(own) for own in drawn.values()] == [8] * 5
    assert not torch.equal(drawn[0], drawn[1])
