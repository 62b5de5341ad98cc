"""fedddp report: a page that stands alone, of runs in any state, with the right numbers and nothing unescaped."""

import json
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path

import pytest
import tomli_w
from scipy.stats import ttest_ind

import fedddp
from fedddp.cli.report import again, compare, content, runs
from fedddp.cli.report.page import HERE, LANGUAGES, Texts
from fedddp.comm import Place
from fedddp.config import build, flatten, nested, read_toml, to_dict
from fedddp.setup.resolve import resolve
from tests.helpers.commands import command

EVIL = "<script>alert(1)</script>$x_{$"
VOID = {"meta", "link", "img", "br"}
ALONE = {"run.rounds": 3, "data.partition.num_clients": 4, "run.threads": 1}


class Page(HTMLParser):
    """What stands in a page: its elements with their attributes; whether they close in order."""

    def __init__(self, path):
        super().__init__()
        self.text, self.elements, self.said, self._open = path.read_text(encoding="utf-8"), [], [], []
        self.feed(self.text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.said.append(data)

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self):
        return " ".join(" ".join(self.said).split())


def a_run(folder, metrics=((1, 0.5), (2, 0.7), (3, 0.6)), keys=None, **files):
    """A run folder as the program leaves it, made by hand."""
    folder.mkdir(parents=True)
    config = resolve(build(nested({**ALONE, "run.name": folder.name, **(keys or {})})), Place())
    (folder / "config.toml").write_text(tomli_w.dumps(to_dict(config)))
    lines = [
        {"round": t, "test_accuracy": value, "test_loss": 1 / t, "train_loss": 2 / t, "participants": 4, "failures": 0}
        | {
            "seconds": 2.0,
            "seconds_train": 1.5,
            "seconds_aggregate": 0.25,
            "seconds_evaluate": 0.125,
            "bytes_sent": 1000,
        }
        | {"sent": {"updates": 900, "evaluate": 100}}
        for t, value in metrics
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "status.json").write_text(json.dumps({"state": "done", "round": len(lines)}))
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)
    return folder


def report(*folders, lang="en", out=None):
    out = out or folders[0].parent / "page.html"
    assert command("report")([*map(str, folders), f"--out={out}", f"--lang={lang}"]) == 0
    return Page(out)


def stands_alone(page):
    """No script, nothing that is fetched from elsewhere, and a description for every figure."""
    assert page.all("script") == page.all("iframe") == []
    assert len(page.text.encode()) < 2_000_000
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href"):
            assert attributes.get(name, "data:").startswith("data:"), attributes
    assert not re.search(r"url\(|@import|https?:", page.text)
    assert all(len(image["alt"]) > 20 for image in page.all("img"))


def test_a_report_stands_alone_and_has_every_section(tmp_path):
    page = report(a_run(tmp_path / "plain"))
    stands_alone(page)
    ids = [section["id"] for section in page.all("section")]
    assert ids == ["learning", "config", "clients", "mistakes", "privacy", "failures", "cost", "reproduce"]
    assert len(page.all("img")) == 2
    assert page.all("html")[0]["lang"] == "en"
    assert page.all("img")[0]["alt"] == "Test accuracy by round: 0.5 in round 1, 0.6 in round 3; best 0.7 in round 2."
    assert "prefers-color-scheme: dark" in page.text
    assert "@media print" in page.text
    for said in (
        "Test accuracy 0.6 ",
        "3 of 3",
        "3 kB per rank",
        "updates 2.7 kB",
        "local training 4.5 s 75%",
        "6 s 100%",
    ):
        assert said in page.words, said


def test_what_differs_from_the_defaults_is_listed_with_the_default(tmp_path):
    page = report(a_run(tmp_path / "own", keys={"model.name": "mlp", "client.optimizer.lr": 0.03, "model.hidden": 7}))
    for said in ("client.optimizer.lr 0.03 0.1", "model.hidden 7 200", "model.name mlp cnn", "run.rounds 3 10"):
        assert said in page.words, said
    assert "client.batch_size" not in page.words


def test_the_configuration_in_a_report_repeats_the_run(tmp_path):
    keys = {
        "algorithm.name": "fedprox",
        "algorithm.mu": 0.5,
        "model.name": "mlp",
        "cohort.size": 2,
        "evaluate.every": 2,
    }
    folder = a_run(tmp_path / "own", keys=keys)
    toml = content.single(runs.Run.read(folder), Texts.of("en"))["toml"]
    ours, theirs = (
        flatten(to_dict(build(table))) for table in (tomllib.loads(toml), read_toml(folder / "config.toml"))
    )
    assert ours == {**theirs, "run.dir": ours["run.dir"]}


def test_nothing_of_a_run_is_markup(tmp_path):
    folder = a_run(tmp_path / "evil", keys={"run.name": EVIL.replace("/", "")}, environment__txt=f"cpu: {EVIL}\n")
    (folder / "status.json").write_text(json.dumps({"state": "failed", "error": f"Error: {EVIL}"}))
    line = {"round": 4, "test_accuracy": 0.5, "failures": 2, "failure_reasons": {EVIL: 1}, "train_loss": 1.0}
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line | {"sent": {EVIL: 5}, "epsilon": 1.5, "epsilon_terms": EVIL}) + "\n")
    for page in (report(folder), report(folder, a_run(tmp_path / "other"))):
        stands_alone(page)
        assert "<script" not in page.text
        assert "ValueError" not in page.words  # of a figure, whose labels are no formulas
        assert EVIL in page.words
    assert "reason not recorded 1" in report(folder).words


@pytest.mark.parametrize("state", ["running", "interrupted", "failed", "odd", None])
def test_a_run_in_any_state_has_a_report(state, tmp_path):
    folder = a_run(tmp_path / "some", metrics=[])
    (folder / "metrics.jsonl").unlink()
    (folder / "status.json").write_text(json.dumps({"state": state}) if state else "{")
    page = report(folder)
    stands_alone(page)
    assert page.all("img") == []
    assert "No round was finished." in page.words
    found = {"running": "interrupted", "odd": "unknown", None: "unknown"}.get(state, state)
    assert f"State {found}" in page.words  # nobody holds the lock of a run that says it is running


def test_damaged_lines_are_counted_and_a_round_counts_once(tmp_path):
    folder = a_run(tmp_path / "resumed")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write(
            b'{"round": 3, "test_accuracy": 0.9, "bytes_sent": 1000}\n[1]\n\xff\xfe\nnull\n{"round": 4, "test_acc'
        )
    page = report(folder)
    assert "4 lines of metrics.jsonl are damaged" in page.words
    assert "0.9 in round 3" in page.all("img")[0]["alt"]
    assert "3 of 3" in page.words


def test_values_of_another_kind_are_left_out(tmp_path):
    folder = a_run(tmp_path / "odd")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 4, "test_accuracy": NaN, "sent": 5, "failure_reasons": [1], "seconds": "long"}\n')
        file.write('{"round": 5, "test_accuracy": "high", "sent": {"updates": "all"}, "epsilon": Infinity}\n')
    page = report(folder)
    stands_alone(page)
    assert "0.6 in round 3; best 0.7" in page.all("img")[0]["alt"]
    assert "updates 2.7 kB" in page.words


def test_clients_are_summarised_by_mean_worst_tenth_and_spread(tmp_path):
    rows = "".join(f"{k},{10 + k},0:5 {k % 3}:{5 + k},{k / 20},{1 - k / 20}\n" for k in range(20))
    table = f"client,examples,labels,personal_accuracy,global_mae\n{rows}"
    run = runs.Run.read(a_run(tmp_path / "clients", clients__csv=table + "20,1\n21,1,0:1,1,1,1\n"))
    personal, other = content._spreads(run)
    assert (personal["mean"], personal["worst"]) == (pytest.approx(0.475), pytest.approx(0.025))
    assert personal["std"] == pytest.approx(0.28831, abs=1e-4)
    assert other["worst"] == pytest.approx(0.975)  # of an error, the largest
    page = report(run.folder)
    stands_alone(page)
    assert "Examples of 20 clients: 10 to 29, median 19." in page.text
    assert len(page.all("img")) == 4


def test_ten_thousand_clients_and_rounds_stay_small(tmp_path):
    rows = "".join(f"{k},{k % 50},{k / 1e4}\n" for k in range(10_000))
    metrics = [(t, 1 - 1 / t) for t in range(1, 10_001)]
    folder = a_run(tmp_path / "large", metrics, clients__csv=f"client,examples,loss\n{rows}")
    page = report(folder)
    stands_alone(page)
    assert len(page.text) < 500_000
    assert "Examples of 10000 clients: 0 to 49" in page.text
    assert len(page.all("img")) == 4


def test_runs_that_differ_in_their_seeds_are_a_group(tmp_path):
    def of(name, gain, seed):
        keys = {"algorithm.name": name, "run.seed": seed}
        return a_run(tmp_path / "s" / f"{name}-{seed}", [(1, 0.3), (2, 0.5 + gain + seed / 100)], keys)

    folders = [of(name, gain, seed) for name, gain in (("fedavg", 0.0), ("scaffold", 0.3)) for seed in range(3)]
    found = runs.found([tmp_path / "s"])
    assert len(found) == len(folders)
    fedavg, scaffold = compare.groups(found)
    assert (fedavg.name, scaffold.name) == ("algorithm.name=fedavg", "algorithm.name=scaffold")
    assert fedavg.mean == pytest.approx(0.51)
    assert fedavg.deviation == pytest.approx(0.01)
    assert compare.level(found) == 0.5  # what the weakest run reached
    assert [run.rounds_to(0.5) for run in found] == [2] * 6
    (difference,) = compare.against_first([fedavg, scaffold])
    assert difference.difference == pytest.approx(0.3)
    assert difference.p == pytest.approx(ttest_ind(scaffold.finals, fedavg.finals, equal_var=False).pvalue, rel=1e-4)
    page = report(tmp_path / "s")
    stands_alone(page)
    assert "Rounds to 0.5" in page.words
    assert f"algorithm.name=scaffold - algorithm.name=fedavg 0.3 {difference.p:.2g}" in page.words
    one = report(folders[0], folders[3])
    assert "no statement" in one.words
    same = report(*folders[:3])
    assert "nothing to compare" in same.words


def test_less_is_better_of_an_error(tmp_path):
    run = runs.Run.read(a_run(tmp_path / "error", [(1, None), (2, None)]))
    found = [m | {"test_mae": 3.0 - m["round"]} for m in run.history]
    ordered = [{"round": m["round"], "test_mae": m["test_mae"], **m} for m in found]
    worse = runs.Run(run.folder, run.keys, ordered, 0, {}, {}, [], "")
    assert worse.primary == "test_mae"
    assert worse.best == (2, 1.0)
    assert worse.rounds_to(2.0) == 1
    assert compare.level([worse]) == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [([1.0, 2.0, 4.0], [2.0, 2.5, 7.0]), ([0.9, 0.91], [0.5, 0.7]), ([0.1, 0.2, 0.3, 0.4] * 5, [0.1, 0.9] * 9)],
)
def test_the_p_of_welch_is_scipys(a, b):
    assert compare.welch(a, b) == pytest.approx(ttest_ind(a, b, equal_var=False).pvalue, rel=1e-4)


@pytest.mark.parametrize(("a", "b"), [([1.0], [2.0, 3.0]), ([], []), ([1.0, 1.0], [2.0, 2.0])])
def test_one_seed_or_no_deviation_is_no_statement(a, b):
    assert compare.welch(a, b) is None


def test_runs_of_different_metrics_have_no_common_curve(tmp_path):
    other = a_run(tmp_path / "loss", [(1, None), (2, None)])
    page = report(a_run(tmp_path / "accuracy"), other)
    stands_alone(page)
    assert page.all("img") == []
    assert "different metrics" in page.words


def test_privacy_is_stated_with_its_terms_or_none(tmp_path):
    private = a_run(tmp_path / "private", keys={"privacy.level": "example", "privacy.noise_multiplier": 1.0})
    line = {"round": 4, "test_accuracy": 0.5, "epsilon": 3.21, "epsilon_terms": "at delta 1e-05 (adding one)"}
    assert "no round was released" in report(private).words
    with (private / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    page = report(private)
    assert "Differential privacy of each example: epsilon 3.21 at delta 1e-05 (adding one)." in page.words
    assert "epsilon by round" in page.all("img")[-1]["alt"]
    assert "None. Nothing bounds" in report(a_run(tmp_path / "plain")).words


def test_the_languages_have_the_same_texts_with_the_same_places():
    tables = [Texts.of(language).table for language in LANGUAGES]
    placed = [{key: {*re.findall(r"\{(\w+)\}", text)} for key, text in table.items()} for table in tables]
    assert placed[0] == placed[1]
    template = (HERE / "report.html").read_text()
    sources = template + "".join((HERE / name).read_text() for name in ("content.py",))
    used = {*re.findall(r"\bt\(\s*\"(\w+)\"", sources)}
    assert used - {"state_", "phase_"} <= {*tables[0]}


def test_a_report_in_chinese(tmp_path):
    page = report(a_run(tmp_path / "plain"), lang="zh")
    stands_alone(page)
    assert page.all("html")[0]["lang"] == "zh"
    assert "混淆矩阵" in page.words
    assert "What was run" not in page.words


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "nothing: is not a run folder"),
        (["plain", "--out=no/such/page.html"], "--out=no/such/page.html: cannot be written"),
        (["plain", "--lang=de"], "--lang"),
        ([], "the following arguments are required"),
    ],
)
def test_a_mistake_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    a_run(Path("plain"))
    assert command("report")(words) == 2
    err = capsys.readouterr().err
    assert said in err
    assert err.count("\n") == 1


def test_the_file_lies_in_the_run_folder_by_default(tmp_path):
    folder = a_run(tmp_path / "plain")
    assert command("report")([str(folder)]) == 0
    assert (folder / "report.html").is_file()


@pytest.mark.slow
def test_confusion_and_mistakes_are_those_of_the_best_model(tmp_path):
    keys = {"run.dir": str(tmp_path), "data.partition.num_clients": 4, "model.name": "logistic", "run.threads": 1}
    result = fedddp.run(keys, name="digits", rounds=2)
    score, round = again.scored(result.folder)
    assert score.accuracy == result.summary["best_test_accuracy"]
    assert score.confusion.sum() == 2000
    page = report(result.folder)
    stands_alone(page)
    images = [image["alt"] for image in page.all("img")]
    assert any(f"model of round {round}, accuracy {score.accuracy:.4g}" in alt for alt in images)
    assert sum("taken for" in alt for alt in images) == 2
    (result.folder / "model-best.safetensors").write_bytes(b"damaged")
    assert again.scored(result.folder)[1] == 2  # the last one
    config = result.folder / "config.toml"
    config.write_text(config.read_text().replace("mnist-mini", "no.such:Data"))
    page = report(result.folder)
    assert "Left out: data.name='no.such:Data'" in page.words
    assert not any("taken for" in image["alt"] for image in page.all("img"))


ROLES = {"data.name": "shakespeare-mini", "data.partition.name": "natural", "data.partition.num_clients": 80}
TASKS = {
    "text": {**ROLES, "task.name": "next_token", "cohort.size": 2, "model.name": "lstm", "model.hidden": 8},
    "gan": {"task.name": "conditional_gan", "model.name": "gan", "data.partition.num_clients": 40, "cohort.size": 1}
    | {"client.optimizer.name": "adam", "client.optimizer.lr": 0.002},
}


@pytest.mark.slow
@pytest.mark.parametrize("keys", TASKS.values(), ids=TASKS)
def test_a_task_without_classes_has_a_report(keys, tmp_path):
    result = fedddp.run({"run.dir": str(tmp_path), "run.threads": 1, **keys}, rounds=1)
    page = report(result.folder)
    stands_alone(page)
    assert "Left out: the task has no classes" in page.words
