"""``fedddp predict``: files give what the run's model gives for the same inputs."""

import csv

import numpy as np
import pytest
import torch
from PIL import Image

import fedddp
from fedddp.cli.main import main
from fedddp.data import load

QUIET = {"telemetry": {"progress": "off", "tensorboard": False}, "data.partition.num_clients": 2}


def trained(folder, *layers, **sections):
    run = {"dir": str(folder), "rounds": 1, "threads": 1, "name": "small", **sections.pop("run", {})}
    return fedddp.run(QUIET, *layers, run=run, **sections)


def predicted(result, *words):
    """The rows that the command writes, by column."""
    out = result.folder / "predicted.csv"
    assert main(["predict", str(result.folder), *map(str, words), f"--out={out}"]) == 0
    with out.open(newline="") as file:
        return list(csv.DictReader(file))


def refused(capsys, result, *words):
    capsys.readouterr()
    assert main(["predict", str(result.folder), *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    return error


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A model of the embedded digits that is mostly right, and ten of them."""
    folder = tmp_path_factory.mktemp("digits")
    client = {"local_epochs": 2, "batch_size": 50, "optimizer": {"lr": 0.2}}
    result = trained(folder, model={"name": "mlp", "hidden": 32}, client=client)
    test = load("mnist-mini", folder, False, {}).test
    rows = [int((test.y == c).nonzero()[3]) for c in range(10)]
    files = []
    for c, row in enumerate(rows):
        files.append(folder / f"{c}.png")
        Image.fromarray(test.x[row, 0].numpy()).save(files[-1])
    return result, test.x[rows], files


def test_a_key_that_does_not_exist_is_refused(digits, capsys):
    result, _, files = digits
    assert "rond: unknown key" in refused(capsys, result, files[0], "--rond=3")
    assert "task.sample: unknown key" in refused(capsys, result, files[0], "--task.sample=3")


def test_ten_digits_are_predicted_as_the_module_does(digits, capsys):
    result, images, files = digits
    rows = predicted(result, *files)
    outputs = result.module(fedddp.normalizer(result.folder)(images))
    assert [int(row["class"]) for row in rows] == outputs.argmax(dim=1).tolist()
    np.testing.assert_allclose([float(row["softmax"]) for row in rows], outputs.softmax(1).amax(1).detach(), rtol=1e-4)
    assert [row["file"] for row in rows] == [str(file) for file in files]
    assert sum(int(row["class"]) == c for c, row in enumerate(rows)) >= 8
    assert "round 1" in capsys.readouterr().out


def test_an_array_and_images_of_another_form(digits, capsys, tmp_path):
    result, images, files = digits
    np.savez(tmp_path / "ten.npz", x=images.numpy())
    np.savez(tmp_path / "flat.npz", images.flatten(1).numpy())
    Image.open(files[3]).convert("RGB").resize((56, 56)).save(tmp_path / "large.png")
    rows = predicted(result, tmp_path / "ten.npz", files[0])
    assert [row["row"] for row in rows] == [*map(str, range(1, 11)), "1"]
    assert [row["class"] for row in rows[:10]] == [row["class"] for row in predicted(result, *files)]
    assert "the model takes uint8 [n, 1, 28, 28]" in refused(capsys, result, tmp_path / "flat.npz")
    assert "--resize" in refused(capsys, result, tmp_path / "large.png")
    assert len(predicted(result, tmp_path / "large.png", "--resize")) == 1


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("missing.png", None, "no such file"),
        ("digit.pdf", b"%PDF", "should end in"),
        ("broken.png", b"no image", "is no image"),
        ("broken.npz", b"no archive", "cannot be read"),
        ("rows.csv", b"a,b\n1,2\n", "is a table"),
        ("start.txt", b"Hark", "does not read text"),
    ],
)
def test_a_file_that_does_not_fit_is_one_line(digits, capsys, tmp_path, name, content, said):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    error = refused(capsys, digits[0], tmp_path / name)
    assert said in error
    assert name in error


PATIENTS = ["age,blood,dose,ill", *(f"{20 + i},{'AB'[i % 2]},{1.5 * i},{'yes' if i % 2 else 'no'}" for i in range(40))]


@pytest.mark.parametrize("task", ["classification", "binary"])
def test_rows_of_a_table_find_their_columns_by_name_and_classes_have_their_names(tmp_path, capsys, task):
    (tmp_path / "patients.csv").write_text("\n".join(PATIENTS))
    args = {"file": "patients.csv", "target": "ill"}
    data = {"name": "csv", "root": str(tmp_path), "args": args}
    client = {"local_epochs": 20, "optimizer": {"lr": 0.1}}
    result = trained(tmp_path, data=data, model={"name": "logistic"}, task=task, client=client)
    (tmp_path / "new.csv").write_text("blood,name,dose,age\nB,x,4.5,23\nA,y,0,20\nC,z,3,22\n")
    rows = predicted(result, tmp_path / "new.csv")
    assert [row["class"] for row in rows[:2]] == ["yes", "no"]
    same = predicted(result, tmp_path / "patients.csv")  # the target is ignored
    whole = load("csv", tmp_path, False, args)
    expected = fedddp.predictor(result.folder)(torch.cat([whole.train.x, whole.test.x])).detach()
    likely = "probability" if task == "binary" else "softmax"
    p = expected.sigmoid()[:, 0] if task == "binary" else expected.softmax(1).amax(1)
    np.testing.assert_allclose(sorted(float(row[likely]) for row in same), sorted(p.tolist()), rtol=1e-4)
    (tmp_path / "less.csv").write_text("blood,age\nB,23\n")
    assert "'dose'" in refused(capsys, result, tmp_path / "less.csv")
    (tmp_path / "patients.csv").rename(tmp_path / "moved.csv")
    assert "patients.csv" in refused(capsys, result, tmp_path / "new.csv")
    assert len(predicted(result, tmp_path / "new.csv", "--data.args.file=moved.csv")) == 3


def test_a_regression_of_a_table_is_in_the_units_of_its_target(tmp_path):
    (tmp_path / "doses.csv").write_text("a,b,dose\n" + "".join(f"{i},{i % 3},{100 + 3 * i}\n" for i in range(40)))
    data = {"name": "csv", "root": str(tmp_path), "args": {"file": "doses.csv", "target": "dose"}}
    client = {"local_epochs": 40, "optimizer": {"lr": 0.1}}
    result = trained(tmp_path, data=data, model="logistic", task="regression", client=client)
    (tmp_path / "new.csv").write_text("b,a\n1,10\n2,20\n")
    found = [float(row["prediction"]) for row in predicted(result, tmp_path / "new.csv")]
    assert found == pytest.approx([130, 160], abs=2)


def test_a_beginning_of_a_text_is_continued(tmp_path):
    count = len(load("shakespeare-mini", tmp_path, False, {"min_characters": 9000}, "positions").train.owner.unique())
    data = {"name": "shakespeare-mini", "args": {"min_characters": 9000}}
    data["partition"] = {"name": "natural", "num_clients": count}
    model = {"name": "lstm", "hidden": 4}
    result = trained(tmp_path, data=data, task="next_token", model=model, client={"local_steps": 1})
    (tmp_path / "start.txt").write_text("To be, or \u00e9\n", encoding="utf-8")
    (row,) = predicted(result, tmp_path / "start.txt", "--task.sample_length=7")
    assert row["text"].startswith("To be, or ?")  # a character that the model does not know
    assert len(row["text"]) == len("To be, or ?") + 7


def test_several_labels_have_a_probability_each(tmp_path):
    x = torch.randn(40, 5, generator=torch.Generator().manual_seed(0))
    y = (x[:, :3] > 0).long()
    data = fedddp.Dataset.of((x, y), (x, y), None, "labels")
    result = trained(tmp_path, dataset=data, model="logistic", task="multilabel")
    np.savez(tmp_path / "x.npz", x=x[:4].numpy())
    rows = predicted(result, tmp_path / "x.npz")
    p = fedddp.predictor(result.folder)(x[:4]).sigmoid().detach()
    assert [row["labels"] for row in rows] == [" ".join(str(i) for i in range(3) if one[i] > 0.5) for one in p]
    np.testing.assert_allclose([float(row["probability 2"]) for row in rows], p[:, 2], rtol=1e-5)


def test_a_gan_predicts_nothing(tmp_path, capsys):
    data = {"name": "synthetic", "args": {"num_train": 20, "num_test": 10}}
    result = trained(tmp_path, data=data, model={"name": "gan", "latent": 4}, task="conditional_gan")
    np.savez(tmp_path / "x.npz", x=np.zeros((2, 1, 28, 28), np.uint8))
    assert "fedddp generate" in refused(capsys, result, tmp_path / "x.npz")
