"""Results in notebooks: HTML and figures."""

import base64
import re
from html.parser import HTMLParser

import pytest

import fedddp
from tests.helpers.inputs import Kind

QUIET = {"run.device": "cpu", "run.threads": 1, "telemetry.tensorboard": False, "telemetry.progress": "off"}


def result_of(tmp_path, **sections):
    given = {"rounds": 3, "model": {"name": "mlp", "hidden": 3}, "dataset": Kind((4,)).dataset()} | sections
    return fedddp.run(QUIET, {"run.dir": str(tmp_path)}, **given)


class Cells(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)


def test_a_result_shows_its_summary_and_a_curve(tmp_path):
    result = result_of(tmp_path)
    page = Cells(result._repr_html_())
    cells = dict(zip(page.text[1::2], page.text[2::2], strict=True))
    assert cells["final test accuracy"] == f"{result.summary['final_test_accuracy']:.4f}"
    assert "rounds to target" not in cells  # it has no value
    (image,) = [attrs for tag, attrs in page.tags if tag == "img"]
    assert image["alt"] == "test accuracy by round"
    assert base64.b64decode(image["src"].removeprefix("data:image/png;base64,")).startswith(b"\x89PNG")


def test_a_name_is_text_and_no_markup(tmp_path):
    text = result_of(tmp_path / "<script>", name="a<b>&c")._repr_html_()
    from fedddp.telemetry.notebook import html

    assert "<script>" not in text
    assert "&lt;script&gt;" in html("<script>", {"privacy": "<b>"}, [])
    assert "<b>" not in html("<script>", {"privacy": "<b>"}, [])


def test_a_curve_has_the_rounds_of_the_history(tmp_path):
    result = result_of(tmp_path, evaluate={"every": 2})
    (axes,) = result.plot().axes
    assert list(axes.lines[0].get_xdata()) == [2, 3]
    assert list(axes.lines[0].get_ydata()) == [
        m["test_accuracy"] for m in result.history if m["test_accuracy"] is not None
    ]


def test_a_confusion_matrix_is_that_of_the_last_round(tmp_path):
    result = result_of(tmp_path)
    assert re.search(r"round 3: ", result.confusion().axes[0].get_title())
    assert int(result.score.confusion.sum()) == len(Kind((4,)).dataset().test)


def test_what_was_not_evaluated_is_said_in_a_line(tmp_path):
    result = result_of(tmp_path)
    again = result_of(tmp_path, resume="auto")
    assert again.folder == result.folder
    with pytest.raises(fedddp.UsageError, match="confusion: "):
        again.confusion()
    assert again.plot() is not None
    empty = type(result)(result.server, [], {"rounds": 0}, None, result.task)
    with pytest.raises(fedddp.UsageError, match="plot: "):
        empty.plot()
    assert "<img" not in empty._repr_html_()
