"""Models of torchvision and timm by name: built, started from the library's weights, or refused in one line."""

import sys
import warnings

import pytest
import torch
from torch import nn

import fedddp
from fedddp.config import build, to_dict
from fedddp.federation import federate
from fedddp.models import Timm, Torchvision
from fedddp.models.weights import started_from
from fedddp.registry.torchvision_operators import declare_if_missing
from tests.helpers.distributed import configured, experiment_of
from tests.helpers.support import refused_by

declare_if_missing()
COLOUR, GREY = (3, 32, 32), (1, 32, 32)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder where torchvision looks for weights that were downloaded."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


def released(cache, name="squeezenet1_1", **kwargs):
    """A model of the library whose weights are in the cache as if it had downloaded them."""
    import torchvision

    module = torchvision.models.get_model(name, weights=None, **kwargs)
    url = torchvision.models.get_model_weights(name).DEFAULT.url
    torch.save(module.state_dict(), cache / url.rpartition("/")[2])
    return module


def test_a_name_of_a_library_is_a_section_with_keys_of_its_own():
    section = build({"model": {"name": "torchvision:resnet18", "pretrained": "DEFAULT"}}).model
    assert section == Torchvision(model="resnet18", pretrained="DEFAULT")
    assert to_dict(build({"model": section}))["model"]["name"] == "torchvision:resnet18"
    assert build(to_dict(build({"model": section}))).model == section
    assert to_dict(build({"model": Timm(model="vit_tiny")}))["model"]["name"] == "timm:vit_tiny"


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1", "googlenet"])
def test_the_head_has_as_many_outputs_as_the_task(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        module = Torchvision(model=name).build((3, 64, 64), 7)
    assert module(torch.zeros(2, 3, 64, 64)).shape == (2, 7)
    assert isinstance(module, nn.Module)


def test_the_sizes_of_resnet_18_are_those_of_the_docs():
    module = Torchvision(model="resnet18").build(COLOUR, 10)
    assert sum(p.numel() for p in module.fc.parameters()) == 5_130
    assert sum(p.numel() for p in module.parameters()) == 11_181_642


def test_pretrained_weights_are_read_from_the_cache_but_for_the_head(cache, caplog):
    there, section = released(cache), Torchvision(model="squeezenet1_1", pretrained="DEFAULT")
    state = torch.get_rng_state()
    make = started_from(section, lambda: section.build(COLOUR, 10))
    module = make()
    torch.set_rng_state(state)
    fresh = section.build(COLOUR, 10)
    for name, tensor in module.state_dict().items():
        head = name.startswith("classifier.1.")
        assert torch.equal(tensor, (fresh if head else there).state_dict()[name]), name
    make()
    said = [r.getMessage() for r in caplog.records]
    assert len(said) == 1
    assert "classifier.1.weight, classifier.1.bias" in said[0]


def test_a_head_of_as_many_classes_is_taken_too(cache):
    there, section = released(cache), Torchvision(model="squeezenet1_1", pretrained="IMAGENET1K_V1")
    module = started_from(section, lambda: section.build(COLOUR, 1000))()
    assert all(torch.equal(t, there.state_dict()[name]) for name, t in module.state_dict().items())


REFUSED = {
    "unknown": ({"name": "torchvision:resnet81"}, "torchvision has no such model of classes; did you mean 'resnet18'?"),
    "a detector": ({"name": "torchvision:ssd300_vgg16"}, "has no such model of classes"),
    "no name": ({"name": "torchvision:"}, "has no such model of classes; there are"),
    "another library": ({"name": "torchvison:resnet18"}, "did you mean 'torchvision:'?"),
    "weights unknown": ({"name": "torchvision:resnet18", "pretrained": "IMAGENET_V1"}, "mean 'IMAGENET1K_V1'?"),
    "weights not there": ({"name": "torchvision:resnet18", "pretrained": "DEFAULT"}, 'python -c "import torchvision'),
    "both": ({"name": "torchvision:resnet18", "pretrained": "DEFAULT", "weights": "w"}, "model.pretrained and model.w"),
    "a key of its name": ({"name": "torchvision:resnet18", "model": "vgg11"}, "model.model: unknown key"),
}


@pytest.mark.parametrize(("model", "says"), REFUSED.values(), ids=REFUSED)
def test_mistakes_are_one_line(model, says, cache, tmp_path):
    assert says in refused_by(tmp_path, model=model, data__args={"shape": list(COLOUR)})


def test_grey_images_are_refused(tmp_path):
    model = {"name": "torchvision:resnet18"}
    assert "takes images of 3 channels, these have 1" in refused_by(tmp_path, model=model)
    assert "use data of [C, H, W]" in refused_by(tmp_path, model=model, data__args={"shape": [7]})


def test_a_file_of_other_shapes_names_the_tensor(tmp_path):
    module = Torchvision(model="squeezenet1_1").build(COLOUR, 1000)
    state = module.state_dict() | {"features.0.weight": torch.zeros(64, 1, 3, 3)}
    torch.save(state, tmp_path / "w.pt")
    model = {"name": "torchvision:squeezenet1_1", "weights": str(tmp_path / "w.pt")}
    line = refused_by(tmp_path, model=model, data__args={"shape": list(COLOUR)})
    assert "'features.0.weight' of shape [64, 1, 3, 3], the model's is [64, 3, 3, 3]" in line


def test_without_the_library_a_line_says_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    assert "pip install 'fedddp[vision]'" in refused_by(tmp_path, model={"name": "timm:resnet18"})


@pytest.fixture
def timm():
    return pytest.importorskip("timm", exc_type=ImportError)


def test_timm_fits_the_first_layer_and_the_head(timm):
    module = Timm(model="resnet10t").build(GREY, 7)
    assert module(torch.zeros(2, *GREY)).shape == (2, 7)


def test_an_unknown_model_or_tag_of_timm_is_one_line(timm, tmp_path):
    assert "did you mean 'resnet18'?" in refused_by(tmp_path, model={"name": "timm:resnet118"})
    model = {"name": "timm:resnet18", "pretrained": "a1_in2k"}
    assert "did you mean 'a1_in1k'?" in refused_by(tmp_path, model=model)
    model["pretrained"] = "a1_in1k"
    assert "timm/resnet18.a1_in1k is not in the library's cache" in refused_by(tmp_path, model=model)


def test_weights_of_timm_are_read_from_its_cache(timm, tmp_path, monkeypatch):
    import huggingface_hub
    from safetensors.torch import save_file

    there = timm.create_model("resnet10t", pretrained=False)
    save_file(there.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args: str(tmp_path / "model.safetensors"))
    section = Timm(model="resnet10t", pretrained="DEFAULT")
    module = started_from(section, lambda: section.build(COLOUR, 7))()
    assert torch.equal(module.conv1[0].weight, there.conv1[0].weight)
    assert module.fc.weight.shape[0] == 7


@pytest.mark.slow
def test_the_head_trains_on_what_the_frozen_body_gives(tmp_path):
    model = {"name": "torchvision:squeezenet1_1", "trainable": ["classifier.*"]}
    table = {
        "data": {"name": "synthetic", "args": {"shape": [3, 32, 32], "num_train": 40, "num_test": 10}},
        "run": {"dir": str(tmp_path), "rounds": 1, "name": "head", "threads": 1},
        "telemetry": {"progress": "off", "tensorboard": False},
    }
    result = fedddp.run(table, {"data.partition.num_clients": 2}, model=model)
    loaded = fedddp.load(tmp_path / "head")
    assert all(torch.equal(t, result.module.state_dict()[name]) for name, t in loaded.state_dict().items())
    assert len(result.w) == 512 * 10 + 10


HEAD = 512 * 10 + 10
RESNET = {"name": "torchvision:resnet18", "trainable": ["fc.*"]}


def sent_and_kept(comm, table):
    """What a rank sends to aggregate a round, and the bytes that it keeps for each client that took part."""
    experiment = experiment_of(comm, table)
    f = experiment.federation
    federate(f, experiment.server)
    state = f.store.get(sorted(f.store.touched), f.algorithm.init_client(experiment.server))
    return {
        "sent": [row["sent"]["aggregate"] for row in f.telemetry.history],
        "clients": len(f.store.touched),
        "kept": sum(t.nbytes for t in state.values()),
    }


@pytest.mark.slow
@pytest.mark.parametrize(("algorithm", "vectors", "states"), [("fedavg", 1, 0), ("scaffold", 2, 1)])
def test_a_frozen_body_costs_no_bytes_and_no_client_state(run_ranks, tmp_path, algorithm, vectors, states):
    args = {"shape": [3, 8, 8], "num_train": 100, "num_test": 10}
    keys = {"data__args": args, "data__partition": {"num_clients": 100}, "run": {"rounds": 1}}
    keys["algorithm"] = {"name": algorithm}
    ranks = run_ranks(sent_and_kept, 2, configured(tmp_path, **keys) | {"model": RESNET})
    for sent in ranks[0]["sent"]:
        tally = 20 * 100  # what each client reports: loss, accuracy, two norms, that it took part
        assert 0 <= sent - 4 * vectors * HEAD - tally <= 0.02 * 4 * HEAD
    assert sum(rank["kept"] for rank in ranks) == 100 * 4 * states * HEAD
    assert sum(rank["clients"] for rank in ranks) == (100 if states else 0)
