"""fedddp.secure.identity and keygen: keys on disk, the roster, and what is wrong with them in one line."""

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from fedddp.secure import Identity, IdentityError, Roster, identity_of
from fedddp.secure.identity import signed_by
from tests.helpers.commands import command

main = command("keygen")


@pytest.fixture
def keys(tmp_path, capsys):
    assert main(["--parties", "3", "--out", str(tmp_path / "keys")]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("roster.toml")
    return tmp_path / "keys"


def test_keys_are_private_and_fit_the_roster(keys):
    roster = Roster.load(keys / "roster.toml")
    assert sorted(roster.keys) == [0, 1, 2]
    for rank in range(3):
        path = keys / f"rank-{rank}.key"
        assert path.stat().st_mode & 0o777 == 0o600
        identity = identity_of(str(keys / "rank-{rank}.key"), rank)
        assert identity.public == roster.keys[rank]
        assert signed_by(identity.public, identity.sign(b"text"), b"text")
        assert not signed_by(identity.public, identity.sign(b"text"), b"texts")
        assert not signed_by(roster.keys[(rank + 1) % 3], identity.sign(b"text"), b"text")
    assert identity_of("", 0).public != identity_of("", 0).public


def test_parties_make_their_own_keys_and_merge_the_public_halves(tmp_path, capsys):
    for rank in range(3):
        assert main(["--rank", str(rank), "--out", str(tmp_path / str(rank))]) == 0
    public = [str(tmp_path / str(rank) / f"rank-{rank}.pub") for rank in range(3)]
    assert main(["--merge", *public, "--out", str(tmp_path)]) == 0
    roster = Roster.load(tmp_path / "roster.toml")
    assert roster.keys[2] == Identity.load(tmp_path / "2" / "rank-2.key").public
    for files, reason in (
        (public[1:], "ranks are 0 to 2 without a gap"),
        ([*public, public[0]], "rank 0 is given twice"),
        ([str(tmp_path / "roster.toml")], "not named rank-K.pub"),
    ):
        assert main(["--merge", *files, "--out", str(tmp_path / "other")]) == 1
        assert reason in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--parties", "3"], ["--rank", "1"]])
def test_nothing_is_replaced(keys, capsys, words):
    before = {path.name: path.read_bytes() for path in keys.iterdir()}
    assert main([*words, "--out", str(keys)]) == 1
    assert "exists, and is not replaced" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in keys.iterdir()} == before


def test_two_parties_are_too_few_for_keys(tmp_path, capsys):
    assert main(["--parties", "2", "--out", str(tmp_path)]) == 2
    assert "at least 3" in capsys.readouterr().err


def test_the_command_has_help(capsys):
    assert main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(word in told for word in ("--parties", "--rank", "--merge", "--out", "is ever replaced"))


def test_a_key_that_cannot_be_used_is_named_with_its_remedy(keys, tmp_path):
    readable = keys / "rank-0.key"
    readable.chmod(0o640)
    pem = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    for name, content in (("other.key", pem), ("noise.key", b"-----BEGIN")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / name).chmod(0o600)
    for path, reason in (
        (readable, r"others .* can reach the key \(mode 0640\); chmod 600"),
        (tmp_path / "missing.key", "cannot read the key .*keygen"),
        (tmp_path / "other.key", "not an Ed25519 key"),
        (tmp_path / "noise.key", "not an unencrypted private key in PEM"),
    ):
        with pytest.raises(IdentityError, match=reason) as raised:
            Identity.load(path)
        assert str(raised.value).startswith(f"{path}: ")
        assert "\n" not in str(raised.value)


def test_a_roster_that_cannot_be_used_is_named_with_its_remedy(tmp_path):
    path, a, b = tmp_path / "roster.toml", "aa" * 32, "bb" * 32
    for text, reason in (
        ("[parties", "not TOML"),
        ("x = 1", r"no table \[parties\]"),
        ("[parties]\n0 = 7", "the key of rank 0 is not 64"),
        (f'[parties]\n0 = "{a[2:]}"', "the key of rank 0 is not 64"),
        (f'[parties]\n0 = "{a}"\n2 = "{b}"', "ranks are 0 to 1 without a gap"),
        (f'[parties]\n0 = "{a}"\n1 = "{a}"', "two ranks have the same key"),
    ):
        path.write_text(text)
        with pytest.raises(IdentityError, match=reason) as raised:
            Roster.load(path)
        assert str(raised.value).startswith(f"{path}: ")
    with pytest.raises(IdentityError, match="cannot read the roster"):
        Roster.load(tmp_path / "missing.toml")
    path.write_text(f'[parties]\n1 = "{b}"\n0 = "{a}"')
    assert Roster.load(path).digest == Roster({0: bytes.fromhex(a), 1: bytes.fromhex(b)}).digest
    assert Roster.load(path).digest != Roster({0: bytes.fromhex(b), 1: bytes.fromhex(a)}).digest
