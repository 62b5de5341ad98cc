"""Values that no run can use: one line naming the key, wherever they come from, before anything is made of them."""

import os
import re
from pathlib import Path

import pytest

from fedddp.config import UsageError, build, one_line, parse, read_toml
from fedddp.train import main

HUGE = 10**30
WORDS = {
    "client.batch_size": [2**64, -(2**64), 2**31, int("9" * 400)],
    "client.local_epochs": [HUGE, 10**9, 10**4 + 1],
    "client.local_steps": [2**63, 10**9],
    "client.execution.width": [2**31],
    "run.threads": [2**31 - 1, 2**31, 1025],
    "run.rounds": [10**12],
    "run.seed": [2**63],
    "run.timeout": ["1e308", "1e8"],
    "data.partition.num_clients": [2**40, 10**8],
    "data.args.num_test": ["1e+308", HUGE],
    "algorithm.server_optimizer.weight_decay": ["1e308", "-1e31"],
    "client.optimizer.lr": ["1e39"],
    "evaluate.every": [2**70],
    "checkpoint.keep": [2**64],
    "model.hidden": [10**6],
    "data.root": ['"a\\u0000b"', '"' + "b" * 300 + '"', "/".join(["d"] * 3000)],
    "run.resume": ["x" * 5000],
    "data.args.name": ['"\\u0000"'],
    "model.name": ["m" * 300 + ":Net"],
}
CASES = [(key, str(value)) for key, values in WORDS.items() for value in values]


@pytest.mark.parametrize(("key", "value"), CASES, ids=[f"{key}={value[:20]}" for key, value in CASES])
def test_a_value_out_of_bounds_is_one_short_line_with_its_key(key, value):
    extra = ["--model.name=mlp"] if key == "model.hidden" else []
    with pytest.raises(UsageError, match=f"^{key.removesuffix('.name')}") as refused:
        build(*parse([*extra, f"--{key}={value}"]).layers)
    assert len(str(refused.value)) < 400
    assert str(refused.value) == one_line(str(refused.value))


@pytest.mark.parametrize("value", ["1e30", "-1e30"])
def test_the_bounds_themselves_are_no_mistake(value):
    assert build(*parse([f"--data.args.x={value}", f"--run.seed={2**63 - 1}"]).layers).data.args == {"x": float(value)}


FILES = {
    "lists in lists": "a = " + "[" * 5000 + "]" * 5000,
    "tables in tables": "[" + ".".join("a" * 3000) + "]\nb = 1",
    "more digits than Python reads": "a = " + "9" * 5000,
    "a number beyond 64 bits": "[run]\nseed = 99999999999999999999",
    "a key with a NUL": '[run]\n"a\\u0000" = 1',
    "bytes that are no text": b"\xff\xfe\x00",
    "an unfinished string": '[run]\nname = "',
    "binary": bytes(range(256)) * 20,
}


@pytest.mark.parametrize("content", FILES.values(), ids=FILES)
def test_a_strange_file_is_one_line(content, tmp_path):
    path = tmp_path / "a.toml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as refused:
        build(*parse([str(path)]).layers)
    assert len(str(refused.value)) < 400


@pytest.mark.parametrize("path", ["/dev/zero", "/", "/proc/self/mem", "a\0b", "x" * 5000])
def test_what_is_no_file_is_one_line(path):
    """An endless device among them, which is not read to its end."""
    with pytest.raises(UsageError) as refused:
        read_toml(Path(path))
    assert re.fullmatch(r".{1,100}: cannot be read \([^()]+\); give a TOML file or .*", str(refused.value))
    assert str(refused.value).count("'") in (0, 2)


@pytest.mark.parametrize(
    "word",
    [
        "--" + ".".join("a" * 3000) + "=1",
        "--client.batch_size=" + "[" * 3000,
        "--a\nb.c=1",
        "--run.threads=\x1b[31mred",
        "--data.root=" + os.fsdecode(b"\xff\xfe"),
        "--run.dir=a\0b",
    ],
)
def test_a_strange_word_is_one_line_on_the_screen_and_exit_code_2(word, capsys):
    assert main([word]) == 2
    (line,) = capsys.readouterr().err.rstrip("\n").split("\n")
    assert line.isprintable()
