"""The demonstration's attacks on hand-made recordings, its pictures, and its one-line errors."""

import json

import matplotlib.image
import pytest
import torch
from safetensors.torch import save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from examples.privacy import inversion, membership
from examples.privacy.rows import Attacker
from examples.privacy.scenarios import FEW, RANKS, SCENARIOS
from fedddp.data import DATASETS
from fedddp.models import MODELS
from fedddp.tasks import Task

pytestmark = pytest.mark.slow

TAIL = 16
"""Slots behind the update, as a round's buffer has them."""


def gradient(module, task, x, y):
    loss = task.loss(module((x.float() / 255 - 0.1307) / 0.3081), y).mean()
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(module.parameters()))])


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Every scenario without any protection: what is attacked as masked is an integer sum nobody has masked."""
    folder = tmp_path_factory.mktemp("recordings")
    train = DATASETS["mnist-mini"](folder, False).train
    task = Task(lambda: MODELS["mlp"]().build((1, 28, 28), 10), 10)
    module = task.model(0)
    before = task.initial_params(0)
    third = -(-(len(before) + TAIL) // RANKS)
    for name, scenario in SCENARIOS.items():
        rows = [range(rank * FEW, rank * FEW + scenario.examples) for rank in range(RANKS)]
        sent = [-0.1 * gradient(module, task, train.x[list(r)], train.y[list(r)]) for r in rows]
        for rank, own in enumerate(rows):
            handed = torch.cat([sent[rank], torch.zeros(TAIL)])
            if name == "masked":
                handed = (handed.double() * 2**40).to(torch.int64)
            start = (rank + 1) % RANKS * third
            tensors = {
                "handed": handed,
                "neighbour": handed[start : start + third].clone(),
                "offset": torch.tensor([start]),
                "before": before,
                "after": before + sum(sent) / RANKS,
                "x": train.x[list(own)],
                "y": train.y[list(own)],
            }
            (folder / name).mkdir(exist_ok=True)
            save_file(tensors, folder / name / f"rank{rank}.safetensors", {"epsilon": "4.38" if rank == 0 else "null"})
    return folder


@pytest.fixture(scope="module")
def found(recordings):
    return Attacker(recordings).findings()


def test_what_is_not_protected_is_read(found):
    """Positive control: the attacks that fail on protected runs succeed on the same rows without protection."""
    for key in ("raw", "chunk", "masked", "dp"):
        assert found[key].psnr > 60, key
        assert found[key].ssim > 0.99
        assert found[key].legible == RANKS
        assert found[key].control < 20
    for key in ("sum", "dp-sum"):
        assert found[key].psnr > 60
        assert 1 <= found[key].legible <= found[key].digits == RANKS * FEW
        assert found[key].control < 25
    assert found["masked"].recorded.startswith("torch.int64")


def test_baselines_of_mnist(found):
    assert 11 < found.baselines.mean_image[0] < 13
    assert 12 < found.baselines.another[0] < 14


def test_the_report_has_a_picture_a_page_and_the_figures(found, tmp_path, capsys):
    inversion._report(found, tmp_path)
    pixels = matplotlib.image.imread(tmp_path / "demo.png")
    assert min(pixels.shape[:2]) > 800
    assert 0.05 < (pixels[..., :3] < 0.1).all(axis=-1).mean() < 0.6  # black of digits on a white page
    figures = json.loads((tmp_path / "demo.json").read_text())
    assert [row["key"] for row in figures["rows"]] == ["raw", "chunk", "masked", "dp", "sum", "dp-sum"]
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    tags = events.Tags()
    assert "what an update gives away" in tags["images"]
    assert {f"PSNR in dB/{row['key']}" for row in figures["rows"]} < set(tags["scalars"])
    assert tags["tensors"]
    told = capsys.readouterr().out
    for word in ("baseline", "secure aggregation alone is no bound", "tensorboard --logdir"):
        assert word in told


@pytest.mark.parametrize(("words", "told"), [(["--seed=x"], "whole number"), (["--what"], "unrecognized")])
def test_bad_words_are_refused(words, told, capsys):
    with pytest.raises(SystemExit) as left:
        inversion.main(words)
    assert left.value.code == 2
    assert told in capsys.readouterr().err


def test_help_says_what_it_does(capsys):
    for program in (inversion, membership):
        with pytest.raises(SystemExit) as left:
            program.main(["--help"])
        assert left.value.code == 0
        assert "--seed" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert inversion.main([f"--out={tmp_path / 'file' / 'demo'}"]) == 2
    assert capsys.readouterr().err.startswith("fedddp: --out=")


def test_a_run_that_fails_is_one_line(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(inversion.tempfile, "tempdir", None)
    monkeypatch.setattr(inversion, "RANKS", 0)  # torchrun refuses
    assert inversion.main([f"--out={tmp_path / 'demo'}"]) == 1
    told = capsys.readouterr().err
    assert told.startswith("fedddp: the recorded run failed")
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--models=5"], "even number"),
        (["--pool=9000"], "only 10000"),
        (["--epsilon", "0"], "above 0"),
        (["--data.root=nowhere"], "nowhere"),
    ],
)
def test_membership_refuses_in_one_line(words, told, capsys):
    assert membership.main(words) == 2
    error = capsys.readouterr().err
    assert told in error
    assert error.count("\n") == 1


def test_membership_from_end_to_end(capsys):
    """Without noise members are found; with next to no budget they are not."""
    assert membership.main(["--pool=60", "--models=4", "--epsilon", "0.5"]) == 0
    told = capsys.readouterr().out
    assert "no DP" in told
    assert "epsilon 0.5 (sigma" in told
    assert "add-or-remove adjacency" in told
