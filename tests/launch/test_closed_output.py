"""A program whose output is closed, full or no longer read goes on; its files hold everything."""

import json
import os
import sys

import pytest

SMALL = (
    "--data.name=synthetic --data.args='{num_train=60, num_test=10, shape=[1,4,4]}' --model.name=logistic "
    "--run.device=cpu --run.threads=1 --run.rounds=4 --run.name=é"
)
TRAIN = f"{sys.executable} -m fedddp.train {SMALL}"
RANKS = f"{sys.executable} -m torch.distributed.run --standalone --nproc_per_node=2 -m fedddp.train {SMALL}"
CASES = {
    "read for a line": f"{TRAIN} --telemetry.progress=lines | head -1",
    "read for a line, with errors": f"{TRAIN} 2>&1 | head -1",
    "a bar read for a line": f"{TRAIN} --telemetry.progress=bar | head -1",
    "closed": f"{TRAIN} >&-",
    "errors closed": f"{TRAIN} 2>&-",
    "all closed": f"{TRAIN} <&- >&- 2>&-",
    "on a full disk": f"{TRAIN} > /dev/full",
    "all on a full disk": f"{TRAIN} > /dev/full 2>&1",
    "a terminal without letters": f"PYTHONIOENCODING=ascii {TRAIN}",
    "closed on two ranks": f"{RANKS} --telemetry.tensorboard=false >&-",
    "errors closed on two ranks": f"{RANKS} --telemetry.tensorboard=false 2>&-",
}


@pytest.mark.parametrize("case", CASES)
def test_training_goes_on(case, program, tmp_path):
    words = ["bash", "-c", f"set -o pipefail; {CASES[case]}"]
    process = program(words, {**os.environ, "OMP_NUM_THREADS": "1"})
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    folder = tmp_path / "runs" / "é"
    assert json.loads((folder / "status.json").read_text())["state"] == "done"
    rounds = [json.loads(line)["round"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert rounds == [1, 2, 3, 4]
    assert said.count("nothing more is printed there") == (
        case in ("read for a line", "a bar read for a line", "on a full disk")
    )


SHOW = f"{sys.executable} -m fedddp show --data.name=synthetic --data.args.num_train=60"
TUNE = f"{sys.executable} -m fedddp tune {SMALL} --grid=client.optimizer.lr=0.01,0.1 --folds=2 --out=tuned"
OTHERS = {
    f"{SHOW} | head -1": "partition.png",
    f"{SHOW} >&-": "partition.png",
    f"{SHOW} > /dev/full": "partition.png",
    f"{TUNE} | head -1": "tuned/chosen.toml",
    f"{TUNE} >&- 2>&-": "tuned/chosen.toml",
}


@pytest.mark.parametrize("command", OTHERS)
def test_other_programs_write_their_files_though_nobody_reads(command, program, tmp_path):
    process = program(["bash", "-c", f"set -o pipefail; {command}"], {**os.environ, "OMP_NUM_THREADS": "1"})
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Traceback" not in said
    assert (tmp_path / OTHERS[command]).stat().st_size
