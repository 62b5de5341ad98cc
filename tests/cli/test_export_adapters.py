"""Adapters as peft's folder and merged into the layers; what a language model writes."""

import pytest
import torch

import fedddp
from fedddp.cli.export.adapters import merged
from fedddp.cli.main import main
from fedddp.registry.torchvision_operators import declare_if_missing
from tests.helpers import llama

declare_if_missing()
transformers = pytest.importorskip("transformers", exc_type=ImportError)
peft = pytest.importorskip("peft", exc_type=ImportError)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return llama.save(tmp_path_factory.mktemp("llama"))


def trained(tmp_path, model, **sections):
    dataset, owners = llama.data()
    result = fedddp.run(llama.table(tmp_path, model, **sections), dataset=dataset, partition=owners)
    return result, fedddp.load(result.folder, best=True)


def written(result, to):
    out = result.folder / "out"
    assert main(["export", str(result.folder), f"--to={to}", f"--out={out}"]) == 0
    return out


def logits(model, x):
    with torch.no_grad():
        return model.eval()(input_ids=x).logits


@pytest.mark.parametrize("algorithm", ["fedavg", "fedex_lora"])
def test_merged_weights_are_a_model_of_transformers(tmp_path, folder, algorithm):
    model = {"name": f"hf:{folder}", "lora": llama.LORA}
    result, module = trained(tmp_path, model, algorithm={"name": algorithm})
    x = llama.texts()[0][:4]
    (folder / "tokenizer.json").write_text("{}")
    alone = transformers.AutoModelForCausalLM.from_pretrained(written(result, "hf") / "model")
    (folder / "tokenizer.json").unlink()
    assert (result.folder / "out" / "model" / "tokenizer.json").read_text() == "{}"
    with torch.no_grad():
        assert torch.allclose(logits(alone, x), module(x), atol=1e-5)
    assert not torch.allclose(
        logits(transformers.AutoModelForCausalLM.from_pretrained(folder), x), module(x), atol=1e-3
    )


def test_a_folder_of_peft_gives_the_outputs(tmp_path, folder):
    result, module = trained(tmp_path, {"name": f"hf:{folder}", "lora": llama.LORA, "trainable": ["model.norm.*"]})
    x = llama.texts()[0][:4]
    base = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = peft.PeftModel.from_pretrained(base, written(result, "peft") / "adapter")
    with torch.no_grad():
        assert torch.equal(logits(model, x), module(x))
    assert peft.PeftConfig.from_pretrained(result.folder / "out" / "adapter").base_model_name_or_path == str(folder)


def test_adapters_of_ones_own_model(tmp_path):
    gpt = {"name": "gpt", "width": 8, "heads": 2, "layers": 1, "lora": {"rank": 2}}
    result, module = trained(tmp_path, gpt)
    from fedddp.models.weights import Weights

    x = llama.texts()[0][:4]
    plain = merged(module)
    assert not any("lora" in name for name in plain.state_dict())
    assert torch.allclose(plain(x), module(x), atol=1e-5)
    assert Weights(plain.state_dict(), "merged")
    folder = written(result, "peft") / "adapter"
    assert {path.name for path in folder.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_layers_that_are_held_in_bfloat16_are_merged_in_the_adapters_type(tmp_path, folder):
    _, module = trained(tmp_path, {"name": f"hf:{folder}", "lora": llama.LORA, "frozen_dtype": "bfloat16"})
    plain = merged(module).state_dict()
    own = module.state_dict()
    at = "model.layers.0.self_attn.q_proj"
    down, up = (own[f"{at}.lora_{ab}.default.weight"] for ab in "AB")
    assert torch.allclose(plain[f"{at}.weight"], own[f"{at}.base_layer.weight"].float() + 2 * up @ down, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "algorithm", "says"),
    [
        ({"name": "gpt", "width": 8, "heads": 2, "layers": 1}, "fedavg", "--to=peft: model.name='gpt' has no adapters"),
        ({"lora": llama.LORA}, "fedex_lora", "--to=peft: algorithm.name='fedex_lora' adds matrices"),
    ],
)
def test_what_has_no_folder_of_peft_is_one_line(tmp_path, folder, capsys, model, algorithm, says):
    result, _ = trained(tmp_path, {"name": f"hf:{folder}", **model}, algorithm={"name": algorithm})
    capsys.readouterr()
    assert main(["export", str(result.folder), "--to=peft"]) == 2
    assert says in capsys.readouterr().err


def test_a_language_model_continues_a_text(tmp_path, folder, capsys):
    tokenizers = pytest.importorskip("tokenizers")
    words = {"<pad>": 0} | {f"w{i}": i for i in range(1, llama.V)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    data = {"root": str(tmp_path), "args": {"tokenizer": "tokenizer.json"}}
    result, _ = trained(tmp_path, {"name": f"hf:{folder}", "lora": llama.LORA}, data=data)
    texts = []
    for words in (["--length=5"], ["--length=5"], ["--length=5", "--seed=1"], ["--length=9", "--temperature=0.01"]):
        capsys.readouterr()
        assert main(["generate", str(result.folder), "w3 w4", *words]) == 0
        texts.append(capsys.readouterr().out.strip())
    assert texts[0] == texts[1] != texts[2]
    assert all(text.startswith("w3 w4 ") for text in texts)
    assert [len(text.split()) for text in texts] == [7, 7, 7, 11]
