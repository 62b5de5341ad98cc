"""See what an update gives away: digits read out of the messages of a real run, without and with protection.

    python -m examples.privacy.inversion [--out=runs/privacy-demo] [--seed=3]

Starts real runs of three ranks on this machine, records what each rank hands to the collectives, and attacks that: a
raw update, the part of it that a neighbour in the ring receives, a masked update (secure aggregation), a noised one
(differential privacy), and the sum that every rank decodes. Digits and model follow the seed; masks and noise are
secret and new each time.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from rich.table import Table

from examples.privacy.rows import Attacker, Findings, Row
from examples.privacy.scenarios import CLIP, FEW, LR, RANKS, SIGMA
from fedddp.registry.choice import user_path
from fedddp.telemetry import console, lasting_output

SEEN_BY = {
    "raw": "both ring neighbours together; a tap",
    "chunk": "one ring neighbour alone",
    "masked": "ring neighbours; a tap",
    "dp": "ring neighbours; a tap",
    "sum": "every rank; a reader of the models",
    "dp-sum": "every rank; a reader of the models",
}


class Failed(RuntimeError):
    """The demonstration cannot go on; one line says why."""


@lasting_output()
def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; the exit code (0 done, 1 failed, 2 bad usage)."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.privacy.inversion",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--out", type=user_path, default=Path("runs/privacy-demo"), help="folder [runs/privacy-demo]")
    parser.add_argument("--seed", type=seed_of, default=3, help="of digits and model [3]")
    args = parser.parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        print(f"{RANKS} ranks, five runs of one round each ...", flush=True)
        with tempfile.TemporaryDirectory(prefix="fedddp-demo-") as folder:
            recorded(Path(folder), args.seed)
            found = Attacker(Path(folder)).findings()
        _report(found, args.out)
    except OSError as error:
        return failed(f"--out={args.out}: cannot be written ({error.strerror}); choose another folder", 2)
    except Failed as error:
        return failed(str(error), 1)
    except KeyboardInterrupt:
        return failed("stopped", 1)
    return 0


def seed_of(word: str) -> int:
    if not word.isdecimal():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number from 0 up")
    return int(word)


def failed(why: str, code: int) -> int:
    print(f"fedddp: {why}", file=sys.stderr)
    return code


def recorded(folder: Path, seed: int, *more: str) -> None:
    """The real runs: three processes under torchrun, one thread each. Raises `Failed`. ``more``: words for `record`."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={RANKS}"]
    command = [*launcher, "-m", "examples.privacy.record", f"--out={folder}", f"--seed={seed}", *more]
    with subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=300)
        except BaseException:
            process.terminate()  # torchrun ends its ranks
            raise
    if process.returncode:
        log = Path(tempfile.gettempdir()) / f"fedddp-demo-{os.getpid()}.log"
        log.write_text(output, encoding="utf-8")
        errors = [line for line in output.splitlines() if "Error: " in line and "ChildFailed" not in line]
        raise Failed(f"the recorded run failed: {(errors or ['no reason given'])[0].strip()} (all of it: {log})")


def _report(found: Findings, out: Path) -> None:
    from examples.privacy import picture  # seconds of imports, while the ranks would have waited for a core

    image = picture.figure(found)
    image.savefig(out / "demo.png", dpi=110)
    figures = {"rows": [row.figures() for row in found.rows], "baselines": dataclasses.asdict(found.baselines)}
    (out / "demo.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    picture.tensorboard(found, image, _markdown(found), out / "tensorboard")
    console(132).print(_table(found))
    print("\n".join(_notes(found)))
    print(
        f"figure: {out / 'demo.png'} (figures as JSON beside it)\nTensorBoard: tensorboard --logdir {out}", flush=True
    )


COLUMNS = ("what is attacked", "who has it", "PSNR dB", "SSIM", ">= 30 dB", "held-out dB")


def _cells(row: Row) -> tuple[str, ...]:
    name = row.title.replace("\n", " ") + (f", epsilon {row.epsilon:.2f}" if row.epsilon is not None else "")
    level = f"{row.psnr:.1f}", f"{row.ssim:.2f}"
    return name, SEEN_BY[row.key], *level, f"{row.legible} of {row.digits}", f"{row.control:.1f}"


def _baselines(found: Findings) -> list[tuple[str, ...]]:
    names = {"baseline: the mean digit": found.baselines.mean_image}
    names["baseline: another digit (99th percentile)"] = found.baselines.another
    return [(name, "anybody", f"{level:.1f}", f"{likeness:.2f}", "", "") for name, (level, likeness) in names.items()]


def _table(found: Findings) -> Table:
    table = Table(title="digits reconstructed from recorded messages")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in COLUMNS[:2] else "right")
    for row in found.rows:
        if row.key == "sum":
            table.add_section()
        table.add_row(*_cells(row), style="red" if row.legible else "green")
    table.add_section()
    for cells in _baselines(found):
        table.add_row(*cells)
    return table


def _markdown(found: Findings) -> str:
    lines = [COLUMNS, ("---",) * len(COLUMNS), *(_cells(row) for row in found.rows), *_baselines(found)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n\n" + "\n\n".join(_notes(found))


def _notes(found: Findings) -> list[str]:
    """What the figures mean, and what they do not."""
    row = found["sum"]
    return [
        f"Updates are one step of SGD (lr {LR:g}) of the mlp. Single digits: median of {RANKS} ranks, one digit each. "
        f"Sums: the best match among {RANKS} x {FEW} digits. Held-out: the same pictures against digits that nobody "
        "trained on.",
        "Masked: noise to anyone without the keys. All the other ranks together can take the sum minus their own.",
        f"The sum is not masked: secure aggregation alone is no bound. {row.legible} of {row.digits} digits come out "
        f"of it, the best at {row.psnr:.0f} dB; of digits that nobody trained on at most {row.control:.0f} dB.",
        f"Noise: example-level DP-SGD, clip {CLIP:g}, noise multiplier {SIGMA:g}. A bound for every attack, not only "
        "this one; so much noise on so few examples leaves little to learn, it takes many examples to afford it.",
    ]


if __name__ == "__main__":
    sys.exit(main())
