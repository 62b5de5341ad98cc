"""fedddp.data.clients: a rank's own clients, and pixels made floats."""

import numpy as np
import pytest
import torch

from fedddp.data import ClientData, Examples, Normalizer, Partition

PARTITION = Partition(np.array([9, 2, 4, 0, 7, 1, 8, 3, 6, 5]), np.array([0, 3, 4, 4, 8, 10]))
EXAMPLES = Examples(torch.arange(10, dtype=torch.uint8).view(10, 1, 1, 1), torch.arange(10) % 4)


def on_rank(rank, world_size):
    normalize = Normalizer((0.5,), (0.5,), torch.float32, torch.device("cpu"))
    return ClientData(EXAMPLES, PARTITION, normalize, rank=rank, world_size=world_size)


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


@pytest.mark.parametrize("client", [-5, -1, 5, 10])
def test_a_client_that_does_not_exist_is_a_key_error(client):
    with pytest.raises(KeyError):
        on_rank(0, 1).examples(client)


def test_nobody_elses_examples_are_in_the_ranks_memory():
    """Every tensor that the object reaches, whatever it is called."""
    data = on_rank(1, 2)
    own = {i for client in (1, 3) for i in PARTITION.indices(client).tolist()}
    pixels = [t for t in vars(data).values() if isinstance(t, torch.Tensor) and t.dtype == torch.uint8]
    assert len(pixels) == 1
    held = torch.tensor([], dtype=torch.uint8).set_(pixels[0].untyped_storage())
    assert set(held.tolist()) == own


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
