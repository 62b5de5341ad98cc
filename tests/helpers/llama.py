"""A small random Llama in a folder, and clients with tokens for it. Needs transformers; import after importorskip."""

import torch

import fedddp
from fedddp.comm import Place
from fedddp.config import build
from fedddp.setup.load import prepare
from fedddp.setup.resolve import resolve

V, T = 31, 10
SIZES = [5, 3, 4, 6, 2, 5, 1, 7]
"""Examples of eight clients."""
LORA = {"rank": 4, "alpha": 8.0, "targets": ["q_proj", "v_proj"]}


def save(folder, **more):
    """A Llama of two layers with grouped heads and tied embeddings, as SmolLM2 has them."""
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "tie_word_embeddings": True}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32}
    config = transformers.LlamaConfig(**{"vocab_size": V, **sizes, **heads, **more}, initializer_range=0.2)
    torch.manual_seed(0)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def texts():
    """Token ids of which each depends on the one before, with padding behind some; the next one is the target."""
    n, stream = sum(SIZES), torch.Generator().manual_seed(1)
    x = (torch.randint(1, V, (n, 1), generator=stream) + 3 * torch.arange(T + 1)) % (V - 1) + 1
    behind = torch.arange(T + 1) >= torch.randint(T // 2, T + 2, (n, 1), generator=stream)
    x, y = x.masked_fill(behind, 0)[:, :-1], x.masked_fill(behind, -100)[:, 1:]
    x[0, 0] = V - 1
    return x, y


def table(tmp_path, model, **sections):
    """A configuration without pictures."""
    return {
        "run": {"dir": str(tmp_path / "runs"), "name": "run", "rounds": 2, "threads": 1},
        "data": {"args": {}},
        "model": model,
        "task": {"name": "next_token", "sample_length": 0},
        "client": {"batch_size": 2, "optimizer": {"lr": 0.5}},
        "telemetry": {"progress": "off", "tensorboard": False},
    } | sections


def data():
    """The dataset and who owns what."""
    x, y = texts()
    ends = torch.tensor(SIZES).cumsum(0).tolist()
    owners = [list(range(end - n, end)) for n, end in zip(SIZES, ends, strict=True)]
    return fedddp.Dataset.of((x, y), (x[:8], y[:8]), V, targets="positions"), owners


def prepared(tmp_path, model, **sections):
    """A run that is ready to start."""
    from fedddp.data import given

    dataset, owners = data()
    config = resolve(build(table(tmp_path, model, **sections), {"data": {"partition": {"num_clients": 8}}}), Place())
    return prepare(config, Place(), dataset, given(owners, len(dataset.train)))
