"""fedddp.data.clients: a rank's clients, their batches, and pixels made floats."""

import numpy as np
import pytest
import torch

from fedddp.data import ClientData, Examples, Normalizer, Partition, plan

PARTITION = Partition.dealt(np.array([9, 2, 4, 0, 7, 1, 8, 3, 6, 5]), np.array([3, 1, 0, 4, 2]))
EXAMPLES = Examples(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10) % 4)


OVERLAPPING = Partition(PARTITION.order, np.array([4, 0, 10, 2, 4]), np.array([3, 5, 0, 8, 3]))
IDENTITY = Normalizer((0.0,), (1 / 255,), torch.float32, torch.device("cpu"))


def on_rank(rank, world_size, placement="home", partition=PARTITION):
    return ClientData(EXAMPLES, partition, IDENTITY, rank=rank, world_size=world_size, placement=placement)


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_a_rank_serves_its_own_clients_and_no_others(world_size):
    for rank in range(world_size):
        data = on_rank(rank, world_size)
        assert data.num_clients == 5
        assert data.sizes.tolist() == [3, 1, 0, 4, 2]
        for client in range(5):
            if client % world_size == rank:
                x, y = data.examples(client)
                assert x.flatten().tolist() == PARTITION.indices(client).tolist()
                assert y.tolist() == (PARTITION.indices(client) % 4).tolist()
            else:
                with pytest.raises(KeyError, match=f"client {client} does not live on rank {rank} of {world_size}"):
                    data.examples(client)


@pytest.mark.parametrize("partition", [PARTITION, OVERLAPPING], ids=["disjoint", "overlapping"])
@pytest.mark.parametrize("rank", [0, 1])
def test_where_data_is_shared_every_rank_serves_every_client(rank, partition):
    data = on_rank(rank, 2, "shared", partition)
    assert data.sizes.tolist() == partition.sizes.tolist()
    for client in range(5):
        assert data.holds(client)
        x, y = data.examples(client)
        assert x.flatten().tolist() == partition.indices(client).tolist()
        assert y.tolist() == (partition.indices(client) % 4).tolist()


def test_shared_data_is_not_copied():
    data = on_rank(1, 2, "shared")
    assert data._x.data_ptr() == EXAMPLES.x.data_ptr()
    assert data._y.data_ptr() == EXAMPLES.y.data_ptr()


@pytest.mark.parametrize("placement", ["home", "shared"])
@pytest.mark.parametrize("client", [-5, -1, 5, 10])
def test_a_client_that_does_not_exist_is_a_key_error(client, placement):
    data = on_rank(0, 1, placement)
    assert not data.holds(client)
    with pytest.raises(KeyError):
        data.examples(client)
    with pytest.raises(KeyError):
        data.gather([0, client], torch.zeros(1, 2, 1, dtype=torch.long))


@pytest.mark.parametrize("partition", [PARTITION, OVERLAPPING], ids=["disjoint", "overlapping"])
@pytest.mark.parametrize(("placement", "world_size"), [("home", 1), ("home", 2), ("shared", 1), ("shared", 2)])
@pytest.mark.parametrize("batch_size", [0, 2])
def test_gather_is_each_clients_own_examples_at_its_plan(placement, world_size, batch_size, partition):
    for rank in range(world_size):
        data = on_rank(rank, world_size, placement, partition)
        ids = [k for k in (3, 0, 4, 2, 1) if data.holds(k)]
        p = plan(data.sizes[ids].tolist(), ids, 1, epochs=2, batch_size=batch_size, seed=0)
        index, mask = p.index.transpose(0, 1), p.mask.transpose(0, 1)
        x, y = data.gather(ids, index)
        assert x.shape == (*index.shape, 1, 1, 1)
        assert x.dtype == torch.float32
        for k, client in enumerate(ids):
            expected = partition.indices(client)[index[:, k][mask[:, k]].numpy()]
            assert x[:, k][mask[:, k]].flatten().round().tolist() == expected.tolist()  # the pixel is the index
            assert y[:, k][mask[:, k]].tolist() == (expected % 4).tolist()


def test_gather_normalises_as_the_normaliser_does():
    normalize = Normalizer((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), torch.float64, torch.device("cpu"))
    pixels = Examples(torch.arange(10 * 3 * 4, dtype=torch.uint8).view(10, 3, 2, 2), torch.arange(10))
    x, y = ClientData(pixels, PARTITION, normalize).gather([3, 0], torch.tensor([[[1, 3], [2, 0]]]))
    assert y.tolist() == [[[1, 3], [4, 9]]]  # client 3 owns 7, 1, 8, 3 and client 0 owns 9, 2, 4
    assert torch.equal(x, normalize(pixels.x[y.flatten()]).view(1, 2, 2, 3, 2, 2))


@pytest.mark.parametrize(
    ("sizes", "placement", "rank"),
    [([4, 0, 6, 0], "home", 1), ([4, 0, 6, 0], "shared", 1), ([0, 3, 0, 7], "home", 0), ([10, 0, 0, 0], "home", 1)],
)
def test_padding_points_at_something_also_where_a_client_has_nothing(sizes, placement, rank):
    data = on_rank(rank, 2, placement, Partition.dealt(PARTITION.order, np.array(sizes)))
    ids = [k for k in range(4) if data.holds(k)]
    x, y = data.gather(ids, torch.zeros(3, len(ids), 2, dtype=torch.long))
    assert x.shape[:3] == y.shape == (3, len(ids), 2)
    assert [len(data.examples(k)[1]) for k in ids] == [sizes[k] for k in ids]


def test_gather_names_the_first_client_of_another_rank():
    with pytest.raises(KeyError, match="client 4 does not live on rank 1 of 2"):
        on_rank(1, 2).gather([3, 4, 2], torch.zeros(1, 3, 1, dtype=torch.long))


@pytest.mark.parametrize("partition", [PARTITION, OVERLAPPING], ids=["disjoint", "overlapping"])
def test_nobody_elses_examples_are_in_the_ranks_memory(partition):
    """Every tensor that the object reaches, whatever it is called."""
    data = on_rank(1, 2, "home", partition)
    own = {i for client in (1, 3) for i in partition.indices(client).tolist()}
    pixels = [t for t in vars(data).values() if isinstance(t, torch.Tensor) and t.dtype == torch.uint8]
    assert len(pixels) == 1
    held = torch.tensor([], dtype=torch.uint8).set_(pixels[0].untyped_storage())
    assert sorted(held.tolist()) == sorted(own)


@pytest.mark.parametrize(("mean", "std"), [((0.1307,), (0.3081,)), ((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-14)])
def test_normaliser_is_to_tensor_and_normalize(mean, std, dtype, tolerance):
    """(x / 255 - mean) / std a channel; folding the constants rounds differently, by a few of the last bits."""
    x = torch.arange(256, dtype=torch.uint8).repeat(len(mean)).view(1, len(mean), 16, 16).expand(2, -1, -1, -1)
    expected = x.to(dtype).div(255)
    expected = expected.sub(torch.tensor(mean, dtype=dtype).view(-1, 1, 1)).div(
        torch.tensor(std, dtype=dtype).view(-1, 1, 1)
    )
    normalized = Normalizer(mean, std, dtype, torch.device("cpu"))(x)
    assert normalized.dtype == dtype
    assert (normalized - expected).abs().max() <= tolerance


def test_other_inputs_are_only_cast():
    normalize = Normalizer((0.5,), (0.5,), torch.float64, torch.device("cpu"))
    floats = torch.tensor([[0.25, 3.0]])
    assert torch.equal(normalize(floats), floats.double())
    words = torch.tensor([[3, 7]])
    assert normalize(words).dtype == torch.int64
    assert torch.equal(normalize(words), words)


def test_normalising_leaves_the_stored_pixels_alone():
    x = EXAMPLES.x.clone()
    Normalizer((0.5,), (0.5,), torch.float32, torch.device("cpu"))(x)
    assert torch.equal(x, EXAMPLES.x)
