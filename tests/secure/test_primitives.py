"""fedddp.secure: Shamir's shares, the graph of neighbours, and masks in the ring."""

import itertools

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from fedddp.secure import graph, masks, shamir

SECRET = bytes(range(32))


def test_the_modulus_is_the_first_prime_above_32_bytes():
    def probably_prime(n):
        odd, twos = n - 1, 0
        while odd % 2 == 0:
            odd, twos = odd // 2, twos + 1
        for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43):
            powers = itertools.accumulate(range(twos - 1), lambda x, _: x * x % n, initial=pow(base, odd, n))
            powers = list(powers)
            if powers[0] != 1 and n - 1 not in powers:
                return False
        return True

    assert [n - 2**256 for n in range(2**256 + 1, shamir.PRIME + 1, 2) if probably_prime(n)] == [297]


@pytest.mark.parametrize(("n", "threshold"), [(3, 2), (4, 3), (9, 6), (40, 27)])
@pytest.mark.parametrize("secret", [SECRET, bytes(32), b"\xff" * 32])
def test_any_threshold_of_shares_restores_the_secret(n, threshold, secret):
    shares = shamir.split(secret, range(1, n + 1), threshold)
    assert all(len(share) == 33 for share in shares.values())
    for chosen in itertools.islice(itertools.combinations(shares, threshold), 30):
        assert shamir.combine({x: shares[x] for x in chosen}, threshold) == secret
    assert shamir.combine(shares, threshold) == secret


def test_fewer_shares_fit_every_secret():
    """With threshold - 1 shares of one secret there is, for any other, a share that completes them to it."""
    shares = shamir.split(SECRET, [1, 2, 3], 3)
    one, two = (int.from_bytes(shares[x], "big") for x in (1, 2))
    for other in (0, 1, 2**255):
        # f(0) = 3 f(1) - 3 f(2) + f(3) for a polynomial of degree 2
        third = (other - 3 * one + 3 * two) % shamir.PRIME
        complete = {1: shares[1], 2: shares[2], 3: third.to_bytes(33, "big")}
        assert shamir.combine(complete, 3) == other.to_bytes(32, "big")


def test_shares_of_the_same_secret_are_never_the_same():
    assert shamir.split(SECRET, [1, 2], 2)[1] != shamir.split(SECRET, [1, 2], 2)[1]


def test_misuse_of_shares_is_refused():
    with pytest.raises(ValueError, match="has 32 bytes, not 31"):
        shamir.split(SECRET[1:], [1, 2], 2)
    for points, threshold in (([0, 1], 2), ([1, 1], 2), ([1, 2], 3), ([1, 2], 0)):
        with pytest.raises(ValueError, match=r"distinct|threshold"):
            shamir.split(SECRET, points, threshold)
    shares = shamir.split(SECRET, [1, 2, 3], 2)
    with pytest.raises(ValueError, match="1 shares, 2 are needed"):
        shamir.combine({1: shares[1]}, 2)
    for wrong in (b"\xff" * 33, bytes(32)):
        with pytest.raises(ValueError, match="not an element"):
            shamir.combine({1: shares[1], 2: wrong}, 2)


@pytest.mark.parametrize("n", [3, 8, 31])
def test_few_parties_are_all_joined(n):
    drawn = graph.draw(range(n), 2, b"seed", graph.shape_for(n))
    assert all(drawn.holders(rank) == tuple(range(n)) for rank in range(n))
    assert all(len(drawn.neighbours[rank]) == n - 1 for rank in range(n))
    assert drawn.threshold == 2


def test_many_parties_have_few_neighbours():
    drawn, other = (graph.draw(range(0, 80, 2), 27, seed, (6, 4)) for seed in (b"a", b"b"))
    for rank, neighbours in drawn.neighbours.items():
        assert len(set(neighbours)) == 6 == len(neighbours)
        assert rank not in neighbours
        assert all(rank in drawn.neighbours[o] for o in neighbours)
    assert drawn.neighbours != other.neighbours
    assert drawn == graph.draw(range(0, 80, 2), 27, b"a", (6, 4))
    reached, ahead = {0}, [0]
    while ahead:
        ahead = [o for r in ahead for o in drawn.neighbours[r] if o not in reached and not reached.add(o)]
    assert len(reached) == 40


def test_the_bound_on_neighbours_keeps_its_promises():
    """Recomputed from the three inequalities, with scipy's hypergeometric distribution."""
    stats = pytest.importorskip("scipy.stats")
    for n in (100, 300, 1000):
        k, t = graph.shape_for(n)
        assert k % 2 == 0
        assert k < n - 1
        colluders = stats.hypergeom(n - 1, -(-n // 10), k)
        left = stats.hypergeom(n - 1, 2 * n // 3 - 1, k)
        assert n * colluders.sf(t - 1) <= 2**-40
        assert n * (0.1 + 1 / 3) ** (k / 2) <= 2**-40
        assert n * left.cdf(t - 1) <= 2**-20 < n * left.cdf(t)
        assert graph.most_neighbours(n, (k, t)) == k
    assert all(graph.shape_for(n)[0] == n - 1 for n in range(32, 80))  # all are joined where no smaller number will do
    assert graph.shape_for(80)[0] < 79


@pytest.mark.parametrize("dtype", masks.RINGS)
@pytest.mark.parametrize("length", [1, 7, masks.CHUNK // 8, masks.CHUNK // 2 + 13])
def test_masks_are_aes_in_counter_mode_added_in_the_ring(dtype, length):
    x = torch.arange(length, dtype=dtype) - 5
    keys = [(bytes([i]) * 32, sign) for i, sign in ((1, 1), (2, -1), (3, 1))]
    y = masks.add(x.clone(), keys)
    bits = 8 * x.element_size()
    expected = x.tolist()
    for key, sign in keys:
        raw = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor().update(bytes(length * bits // 8))
        for i in range(length):
            expected[i] += sign * int.from_bytes(raw[i * bits // 8 : (i + 1) * bits // 8], "little")
    assert [v % 2**bits for v in y.tolist()] == [v % 2**bits for v in expected]
    assert torch.equal(masks.add(y, [(key, -sign) for key, sign in keys]), x)


def test_masks_are_for_integers_on_the_cpu():
    for wrong in (torch.zeros(3), torch.zeros(3, dtype=torch.int16), torch.zeros(2, 2, dtype=torch.int64),
                  torch.zeros(6, dtype=torch.int64)[::2]):  # fmt: skip
        with pytest.raises(ValueError, match="contiguous int64 or int32 vector"):
            masks.add(wrong, [])
