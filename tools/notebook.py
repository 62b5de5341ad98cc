"""Run a notebook's code cells without Jupyter, and store what they print and draw in it.

python -m tools.notebook examples/NAME.ipynb           # only run them
python -m tools.notebook examples/NAME.ipynb --write   # and store the output
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

Cell = dict[str, Any]


def main(argv: list[str]) -> int:
    """Run the notebook that the first word names; 0 if every cell ran."""
    path = Path(argv[0])
    notebook = json.loads(path.read_text(encoding="utf-8"))
    names: dict[str, Any] = {"__name__": "notebook"}
    for number, cell in enumerate(cell for cell in notebook["cells"] if cell["cell_type"] == "code"):
        cell |= {"execution_count": number + 1, "outputs": outputs(cell, names)}
        for output in cell["outputs"]:
            print("".join(output.get("text", "")), end="")
    if "--write" in argv:
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return 0


def outputs(cell: Cell, names: dict[str, Any]) -> list[Cell]:
    """What a cell prints and draws, as a notebook stores it. What the cell defines is added to ``names``."""
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile("".join(cell["source"]), "cell", "exec"), names)
    found: list[Cell] = []
    if printed.getvalue():
        text = printed.getvalue().splitlines(keepends=True)
        found.append({"output_type": "stream", "name": "stdout", "text": text})
    for number in plt.get_fignums():
        image = io.BytesIO()
        plt.figure(number).savefig(image, format="png", dpi=60)
        picture = base64.b64encode(image.getvalue()).decode()
        found.append({"output_type": "display_data", "metadata": {}, "data": {"image/png": picture}})
    plt.close("all")
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
