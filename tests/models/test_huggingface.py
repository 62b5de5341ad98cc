"""Models of transformers from a folder: the kind follows from the task, and what does not fit is one line."""

import sys

import pytest
import torch

import fedddp
from fedddp.config import build, to_dict
from fedddp.data.inputs import Shape
from fedddp.errors import UsageError
from fedddp.flat import FlatSpec
from fedddp.models import HuggingFace
from fedddp.models.weights import started_from
from fedddp.registry.torchvision_operators import declare_if_missing
from tests.helpers.support import refused_by

declare_if_missing()
transformers = pytest.importorskip("transformers", exc_type=ImportError)
V, T = 30, 9
SMALL = {"vocab_size": V, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
GPT = {"vocab_size": V, "n_layer": 1, "n_head": 2, "n_embd": 8, "n_positions": 12, "bos_token_id": 1, "eos_token_id": 1}
TEXT = Shape((T,), V)
TOKENS = Shape((T,), V, per_position=True)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Models as their library saves them: a masked language model (which has no pooler), a GPT-2, an image model."""
    folder = tmp_path_factory.mktemp("models")
    transformers.BertForMaskedLM(transformers.BertConfig(**SMALL)).save_pretrained(folder / "bert")
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT)).save_pretrained(folder / "gpt2")
    sizes = {key: value for key, value in SMALL.items() if key != "vocab_size"}
    config = transformers.ViTConfig(image_size=8, patch_size=4, num_channels=1, **sizes)
    transformers.ViTForImageClassification(config).save_pretrained(folder / "vit")
    config.save_pretrained(folder / "bare")
    return folder


def started(section, shape, outputs=3):
    """The model of a section as a run begins with it, in evaluation mode."""
    return started_from(section, lambda: section.build(shape, outputs))().eval()


def tokens(n=2):
    return torch.randint(1, V, (n, T), generator=torch.Generator().manual_seed(0))


def test_a_path_is_part_of_the_name(folders):
    section = build({"model": {"name": f"hf:{folders / 'bert'}", "pretrained": False}}).model
    assert section == HuggingFace(path=str(folders / "bert"), pretrained=False)
    assert to_dict(build({"model": section}))["model"]["name"] == f"hf:{folders / 'bert'}"


def test_a_classifier_of_texts_keeps_the_body_and_starts_a_head(folders, caplog):
    module = started(HuggingFace(path=str(folders / "bert")), TEXT)
    there = transformers.BertForMaskedLM.from_pretrained(folders / "bert").state_dict()
    own = module.state_dict()
    assert {name for name in own if name not in there} == {
        "bert.pooler.dense.weight", "bert.pooler.dense.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip
    assert all(torch.equal(own[name], there[name]) for name in own if name in there)
    assert module(tokens()).shape == (2, 3)
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 1
    assert "bert.pooler.dense.weight, classifier.bias, classifier.weight; these start anew" in said[0]


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_padding_does_not_change_the_output_of_a_text(folders, name):
    section, x = HuggingFace(path=str(folders / name)), tokens()
    module = started(section, TEXT)
    padded = torch.cat([x, torch.zeros(2, 3, dtype=torch.long)], dim=1)
    assert torch.allclose(module(padded), module(x), atol=1e-6)


def test_a_language_model_scores_every_position(folders):
    module = started(HuggingFace(path=str(folders / "gpt2")), TOKENS, V)
    there = transformers.GPT2LMHeadModel.from_pretrained(folders / "gpt2").eval()
    x = tokens()
    assert torch.equal(module(x), there(x).logits)
    assert FlatSpec.of(module).dim == sum(p.numel() for p in there.parameters())  # tied weights are there once


def test_an_image_model_gets_a_head_of_the_tasks_classes(folders):
    module = started(HuggingFace(path=str(folders / "vit")), Shape((1, 8, 8)), 7)
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 7)


def test_weights_are_drawn_where_they_are_not_asked_for(folders):
    section = HuggingFace(path=str(folders / "gpt2"), pretrained=False)
    module = section.build(Shape((T,), 50, per_position=True), 50)
    assert module(tokens()).shape == (2, T, 50)
    assert section.start(module) is None


def test_reading_weights_draws_nothing(folders):
    section = HuggingFace(path=str(folders / "bert"))
    module = section.build(TEXT, 3)
    state = torch.get_rng_state()
    section.start(module)
    assert torch.equal(torch.get_rng_state(), state)


REFUSED = [
    ("bert", Shape((1, 8, 8)), 3, "cannot be built for this task"),
    ("vit", TEXT, 3, "cannot be built for this task"),
    ("gpt2", Shape((T,), 40), 3, "knows 30 token ids, the data have 40"),
    ("gpt2", Shape((T,), 20, per_position=True), 20, "knows 30 token ids, the data have 20"),
    ("gpt2", Shape((13,), V), 3, "reads up to 12 tokens, inputs have 13"),
    ("vit", Shape((3, 8, 8)), 3, "takes images of 1 channels"),
    ("bare", Shape((1, 8, 8)), 3, "its weights cannot be read"),
    ("none", TEXT, 3, "give a folder with a config.json, or download it once: hf download"),
]


@pytest.mark.parametrize(("name", "shape", "outputs", "says"), REFUSED)
def test_what_does_not_fit_is_one_line(folders, name, shape, outputs, says):
    with pytest.raises(UsageError) as refused:
        started(HuggingFace(path=str(folders / name)), shape, outputs)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_weights_of_other_shapes_name_the_tensor(folders, tmp_path):
    transformers.GPT2LMHeadModel(transformers.GPT2Config(**GPT)).save_pretrained(tmp_path)
    transformers.GPT2Config(**{**GPT, "n_positions": 20}).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match=r"has 'transformer.wpe.weight' of shape \[12, 8\].* says \[20, 8\]"):
        started(HuggingFace(path=str(tmp_path)), TEXT)


def test_without_the_library_a_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    assert "pip install 'fedddp[hf]'" in refused_by(tmp_path, {"name": "hf:models/bert"})


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "task", "keys"),
    [
        ("bert", "classification", {"trainable": ["classifier.*"], "frozen_dtype": "bfloat16"}),
        ("gpt2", "classification", {}),
        ("gpt2", "next_token", {}),
    ],
)
def test_a_run_trains_and_is_loaded(folders, tmp_path, name, task, keys):
    positions = task == "next_token"
    x = torch.cat([tokens(20), torch.full((20, 1), V - 1)], dim=1)  # the largest id is among them
    y = torch.where(x > 1, x, 2) if positions else x[:, 0] % 2
    data = fedddp.Dataset.of((x, y), (x, y), V if positions else 2, targets="positions" if positions else "class")
    table = {
        "run": {"dir": str(tmp_path), "name": "run", "rounds": 1, "threads": 1},
        "task": {"name": task},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    model = {"name": f"hf:{folders / name}", **keys}
    result = fedddp.run(table, dataset=data, partition=[range(12), range(12, 20)], model=model)
    loaded = fedddp.load(tmp_path / "run").state_dict()
    assert all(torch.equal(tensor, result.module.state_dict()[name]) for name, tensor in loaded.items())
    if keys:
        assert len(result.w) == 16 * 2 + 2
