"""What the build of the site makes: the page of configuration keys, links out of docs/, the API page."""

import re
from importlib import import_module

import pytest

from fedddp.config import Config
from fedddp.registry.choice import keys_of
from fedddp.setup.checks import TABLE
from tools.site import checks, configuration, on_page_markdown

from .pages import DOCS

IDENTIFIERS = re.findall(r"^::: (\S+)$", (DOCS / "api.md").read_text(), re.MULTILINE)


def test_the_configuration_page_has_every_key():
    page = configuration()
    missing = [key for key, _ in keys_of(Config) if f"`{key}`" not in page]
    assert missing == []


def test_the_configuration_page_says_what_a_key_means():
    (row,) = [line for line in configuration().splitlines() if line.startswith("| `run.rounds` ")]
    assert "| int | `10` |" in row
    assert row.split("|")[-2].strip()


def test_the_page_of_checks_has_a_row_for_each():
    rows = [line for line in checks().splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == [check.code for check in TABLE]
    assert all(row.count("|") == 5 for row in rows)
    (cohort,) = [row for row in rows if row.startswith("| `cohort-size` ")]
    assert (
        "| `cohort.size`, `data.partition.num_clients` | exceeds the number of clients, which is *population* |"
        in cohort
    )


def test_links_out_of_the_documentation_become_names():
    assert on_page_markdown("[fedddp/flat.py](../fedddp/flat.py)") == "`fedddp/flat.py`"
    assert (
        on_page_markdown("see [the rules](../fedddp/aggregation/rules)") == "see the rules (`fedddp/aggregation/rules`)"
    )
    assert on_page_markdown("[Privacy](privacy.md#the-tally)") == "[Privacy](privacy.md#the-tally)"


def test_the_page_of_configuration_keys_is_a_link_on_the_site_only():
    named = "Configuration keys (`fedddp help loss`)"
    assert on_page_markdown(named) == "[Configuration keys](configuration.md#loss) (`fedddp help loss`)"
    assert on_page_markdown(named.replace(" loss", "")) == "[Configuration keys](configuration.md) (`fedddp help`)"


def test_options_in_a_table_have_a_line_each():
    assert on_page_markdown("| a | `--b=1 --c=2` |") == "| a | `--b=1`<br>`--c=2` |"
    assert on_page_markdown("`--b=1 --c=2`") == "`--b=1 --c=2`"


def test_a_link_to_a_file_that_is_gone_is_a_warning(caplog):
    on_page_markdown("[x](../fedddp/nowhere.py)")
    assert "nowhere.py" in caplog.text


@pytest.mark.parametrize("identifier", IDENTIFIERS)
def test_what_the_api_page_shows_exists(identifier):
    module, _, name = identifier.rpartition(".")
    assert getattr(import_module(module), name).__doc__
