"""``fedddp export``: every format gives the model's outputs back, and the card says what it is."""

import hashlib
import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import fedddp
from fedddp.cli.export.command import run as export
from fedddp.cli.export.formats import FORMATS
from fedddp.cli.main import main
from fedddp.cli.options import FORMATS as NAMES

SMALL = {
    "data": {"name": "synthetic", "args": {"num_train": 60, "num_test": 20}, "partition": {"num_clients": 3}},
    "telemetry": {"progress": "off", "tensorboard": False},
}
MLP = {"name": "mlp", "hidden": 8, "norm": "batch"}
WORDS = torch.randint(1, 7, (24, 6), generator=torch.Generator().manual_seed(0))


class Pretrained(nn.Module):
    """What models of transformers have."""

    def __init__(self):
        super().__init__()
        self.flat, self.head = nn.Flatten(), nn.Linear(784, 10)

    def forward(self, x):
        return self.head(self.flat(x))

    def save_pretrained(self, folder):
        folder.mkdir()
        (folder / "config.json").write_text("{}")


def trained(folder, **sections):
    run = {"dir": str(folder), "rounds": 2, "threads": 1, "name": "small", **sections.pop("run", {})}
    return fedddp.run(SMALL, run=run, **{"model": MLP, **sections})


def written(result, to, *words):
    """The folder of what the command exports."""
    out = result.folder / "out"
    assert main(["export", str(result.folder), f"--to={to}", f"--out={out}", *words]) == 0
    return out


def pixels(n, shape=(1, 28, 28)):
    return torch.randint(0, 256, (n, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_the_names_of_formats_are_those_that_help_lists():
    assert tuple(FORMATS) == NAMES


@pytest.mark.parametrize("words", [(), ("--round=1",)])
@pytest.mark.parametrize("to", ["state_dict", "safetensors"])
def test_weights_load_into_the_module(tmp_path, to, words):
    result = trained(tmp_path)
    file = written(result, to, *words) / FORMATS[to].file
    weights = load_file(file) if to == "safetensors" else torch.load(file, weights_only=True)
    if words:
        other = fedddp.load(result.folder, round=1).state_dict()
    else:
        other = fedddp.load(result.folder, best=True).state_dict()
    assert weights.keys() == other.keys()
    assert all(torch.equal(weights[name], other[name]) for name in other)
    largest = sum(t.numel() * t.element_size() for t in other.values()) + 20_000
    assert file.stat().st_size < largest  # views of one vector would bring the whole of it with each


def test_the_best_round_is_taken_not_the_last(tmp_path):
    result = trained(tmp_path, run={"rounds": 3}, client={"optimizer": {"lr": 0.5}})
    scores = [m["test_accuracy"] for m in result.history]
    best = max(range(3), key=lambda t: (scores[t], t)) + 1
    assert f"after round {best} of 3" in (written(result, "safetensors") / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--round=1",)], ids=["best", "checkpoint"])
def test_an_exported_program_takes_pixels_of_any_number_of_images(tmp_path, words):
    result = trained(tmp_path)
    file = written(result, "exported-program", *words) / "model.pt2"
    program = torch.export.load(file).module()
    which = {"round": 1} if words else {"best": True}
    module, normalize = fedddp.load(result.folder, **which), fedddp.normalizer(result.folder)
    for n in (1, 5):
        torch.testing.assert_close(program(pixels(n)), module(normalize(pixels(n))), rtol=0, atol=1e-6)


IMAGES = {"data": {"args": {"num_train": 60, "num_test": 20, "shape": [3, 8, 8]}}}
TEXT = {"dataset": fedddp.Dataset.of((WORDS[:, :-1], WORDS[:, 1:]), (WORDS[:8, :-1], WORDS[:8, 1:]), None, "positions")}
RECURRENT = {"name": "lstm", "hidden": 8, "embedding": 4}
NUMBERS = WORDS.float(), 100 + 5.0 * WORDS[:, 0]
CASES = {
    "cnn": {"model": "cnn"},
    "resnet": {"model": {"name": "resnet", "depth": 8, "norm": "batch", "width": 0.5}, **IMAGES},
    "lstm": {**TEXT, "model": RECURRENT, "task": "next_token"},
    "gpt": {**TEXT, "model": {"name": "gpt", "width": 8, "layers": 2, "heads": 2}, "task": "next_token"},
    "classifying lstm": {"dataset": fedddp.Dataset.of((WORDS, WORDS[:, 0]), (WORDS, WORDS[:, 0])), "model": RECURRENT},
    "regression": {
        "dataset": fedddp.Dataset.of(NUMBERS, NUMBERS, None, "real"),
        "model": {"name": "logistic"},
        "task": "regression",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_onnx_runtime_gives_the_outputs_of_the_checkpoint(tmp_path, case):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    result = trained(tmp_path, **CASES[case], run={"rounds": 1})
    session = runtime.InferenceSession(written(result, "onnx") / "model.onnx")
    x = result_inputs(case)
    for n in (1, 5):
        (found,) = session.run(None, {"inputs": x[:n].numpy()})
        with torch.no_grad():
            outputs = result.module(fedddp.normalizer(result.folder)(x[:n]))
            expected = result.task.predictions(outputs)
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-5, atol=1e-5)


def result_inputs(case):
    if case in ("cnn", "resnet"):
        return pixels(5, (3, 8, 8) if case == "resnet" else (1, 28, 28))
    return WORDS.float() if case == "regression" else WORDS[:, :-1] if case in ("lstm", "gpt") else WORDS


def test_a_missing_library_is_one_line_with_the_command(tmp_path, monkeypatch, capsys):
    result = trained(tmp_path)
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main(["export", str(result.folder), "--to=onnx"]) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "--to" in line]
    assert re.fullmatch(r"fedddp: --to=onnx: needs onnx .*pip install 'fedddp\[onnx\]'", line)
    assert not (result.folder / "export").exists()


def test_a_model_of_transformers_saves_itself_and_others_are_refused(tmp_path, capsys):
    result = trained(tmp_path, model={"name": "tests.cli.test_export:Pretrained"})
    assert (written(result, "hf") / "model" / "config.json").read_text() == "{}"
    assert "model/config.json" in (result.folder / "out" / "README.md").read_text()
    other = trained(tmp_path)
    assert main(["export", str(other.folder), "--to=hf"]) == 2
    assert "--to=hf: model.name='mlp'" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["safetensors", "state_dict"])
def test_the_card_has_what_a_reader_needs(tmp_path, to):
    result = trained(tmp_path)
    out = written(result, to)
    card, file = (out / "README.md").read_text(), out / FORMATS[to].file
    assert hashlib.sha256(file.read_bytes()).hexdigest() in card
    for said in ("synthetic", "fedavg", "mlp", "differential privacy", "mean 0.5, std 0.3"):
        assert said in card
    line = next(m for m in result.history if f"after round {m['round']} of" in card)
    assert f"| test_loss | {line['test_loss']:.6g} |" in card
    assert str(tmp_path) not in card  # a card is handed out


def test_the_card_of_a_private_run_has_its_guarantee(tmp_path):
    level = {"level": "client", "noise_multiplier": 1.0, "delta": 0.1}
    result = trained(tmp_path, privacy=level, model={"name": "mlp", "hidden": 4})
    assert result.summary["privacy"] in (written(result, "safetensors") / "README.md").read_text()


def test_the_code_in_the_card_runs(tmp_path, monkeypatch):
    result = trained(tmp_path)
    out = written(result, "state_dict")
    monkeypatch.chdir(out)
    code = re.search(r"```python\n(.*?)```", (out / "README.md").read_text(), re.DOTALL)[1]
    module = result.module
    exec(code, {"module": module})
    assert torch.equal(module.state_dict()["1.weight"], fedddp.load(result.folder, best=True).state_dict()["1.weight"])


def test_a_clients_own_model(tmp_path, capsys):
    result = trained(tmp_path, algorithm="ditto", data={"partition": {"name": "shards"}})
    own = [load_file(written(result, "safetensors", f"--client={k}", "--force") / "model.safetensors") for k in (0, 2)]
    assert not torch.equal(own[0]["1.weight"], own[1]["1.weight"])
    assert not torch.equal(own[0]["1.weight"], result.module.state_dict()["1.weight"])
    (state,) = (result.folder / "checkpoints" / "round-000002").glob("clients-*.safetensors")
    kept = load_file(state)["2/v"]
    weight = own[1]["1.weight"].flatten()
    assert torch.equal(kept[: weight.numel()], weight)
    assert "The model of client 2 after round 2" in (result.folder / "out" / "README.md").read_text()
    assert main(["export", str(result.folder), "--to=safetensors", "--client=3"]) == 2
    assert "client=3: the run has 3 clients" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--to=pickle"], "--to"),
        (["--to=safetensors", "--round=7"], "no checkpoint of round 7; there is round 1, 2"),
        (["--to=safetensors", "--client=0"], "algorithm.name='fedavg' has one model for all clients"),
        (["--to=safetensors", "--rounds=7"], "--rounds"),
        ([], "--to"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, capsys, words, said):
    result = trained(tmp_path)
    capsys.readouterr()
    assert main(["export", str(result.folder), *words]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (result.folder / "export").exists()


def test_nothing_is_replaced_unless_asked(tmp_path, capsys):
    result = trained(tmp_path)
    out = written(result, "safetensors")
    (out / "README.md").write_text("mine")
    assert main(["export", str(result.folder), "--to=safetensors", f"--out={out}"]) == 2
    assert "--force" in capsys.readouterr().err
    assert (out / "README.md").read_text() == "mine"
    written(result, "safetensors", "--force")
    assert (out / "README.md").read_text() != "mine"


def test_a_folder_that_is_no_run_is_refused(tmp_path, capsys):
    assert main(["export", str(tmp_path), "--to=safetensors"]) == 2
    assert "is not a run folder" in capsys.readouterr().err


def test_a_gan_has_no_graph(tmp_path, capsys):
    result = trained(tmp_path, model={"name": "gan", "latent": 4}, task="conditional_gan")
    assert main(["export", str(result.folder), "--to=exported-program"]) == 2
    assert "--to=safetensors" in capsys.readouterr().err
    assert any(name.startswith("generator") for name in load_file(written(result, "safetensors") / "model.safetensors"))


def test_numbers_of_a_regression_are_in_the_units_of_its_targets(tmp_path):
    result = trained(tmp_path, **CASES["regression"], client={"local_epochs": 20, "optimizer": {"lr": 0.002}})
    x, y = NUMBERS
    with torch.no_grad():
        predicted = fedddp.predictor(result.folder)(x)[:, 0]
    error = float((predicted - y).abs().mean())
    assert error == pytest.approx(result.history[-1]["test_mae"], rel=1e-4)
    inputs = json.loads((result.folder / "checkpoints" / "round-000002" / "state.json").read_text())["inputs"]
    standard = fedddp.load(result.folder)(x)[:, 0]
    scaled = standard * inputs["target_std"][0] + inputs["target_mean"][0]
    torch.testing.assert_close(predicted, scaled)
    np.testing.assert_array_less(error, float(y.std()))


def test_the_command_is_importable_without_a_command_line(tmp_path):
    """`run` takes a namespace, as the parser makes it."""
    from argparse import Namespace

    result = trained(tmp_path)
    export(Namespace(run=result.folder, to="safetensors", round=None, client=None, out=None, force=False))
    assert list((result.folder / "export").glob("safetensors-round-*/model.safetensors"))
