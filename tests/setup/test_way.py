"""The way of a configuration from fedddp.assemble to a Federation: few places, in one direction.

Calls that carry the configuration are followed; conversions to text are left out. An earlier layout came back to a
place 19 times.
"""

import sys
from pathlib import Path

import fedddp
from fedddp.config import Config
from fedddp.setup.checks import Facts
from fedddp.setup.experiment import Experiment
from fedddp.setup.prepared import Prepared

ROOT = Path(fedddp.__file__).parent
CARRIERS = (Config, Prepared, Facts, Experiment)
TEXT = {"config/load.py", "registry/choice.py", "config/resolved.py", "setup/prepared.py"}
"""Files of conversions to text and of own properties of configuration and run; the first one also merges the layers."""
LAYERS = {
    "data": {"name": "synthetic", "args": {"num_train": 120, "num_test": 40}, "partition": {"num_clients": 3}},
    "telemetry": {"tensorboard": False, "progress": "off"},
    "checkpoint": {"every": 0},
    "model": {"name": "mlp"},
}


def place_of(path):
    """``setup/load.py``; the files of the table of checks are one place."""
    inside = Path(path).relative_to(ROOT)
    return "setup/checks" if inside.parts[:2] == ("setup", "checks") else str(inside)


def is_handed_a_configuration(frame):
    code = frame.f_code
    count = code.co_argcount + code.co_kwonlyargcount + bool(code.co_flags & 4) + bool(code.co_flags & 8)
    values = [frame.f_locals.get(name) for name in code.co_varnames[:count]]
    values += getattr(values[0], "__dict__", {}).values() if code.co_varnames[:1] == ("self",) else ()
    flat = [one for value in values for one in (value if isinstance(value, tuple | list) else (value,))]
    return any(isinstance(one, CARRIERS) or one is LAYERS for one in flat)


def way(assemble):
    """The places that are entered from others with the configuration in hand, in order.

    A call back into a place that waits for its own call to return is no step: the reader has not left it.
    """
    open_calls, steps = [], []

    def profile(frame, event, arg):
        if event == "call":
            path, name = frame.f_code.co_filename, frame.f_code.co_name
            counts = path.startswith(f"{ROOT}/") and not name.startswith("<") and is_handed_a_configuration(frame)
            place = place_of(path) if counts else None
            if place and place not in open_calls and steps[-1:] != [place] and (place not in TEXT or len(steps) == 1):
                steps.append(place)
            open_calls.append(place)
        elif event == "return" and open_calls:
            open_calls.pop()

    sys.setprofile(profile)
    try:
        experiment = assemble()
    finally:
        sys.setprofile(None)
    experiment.close()
    return steps


def test_a_configuration_passes_through_few_places(tmp_path):
    steps = way(lambda: fedddp.assemble(LAYERS, dir=str(tmp_path)))
    assert steps[:4] == ["api.py", "config/load.py", "setup/resolve.py", "setup/checks"]
    assert steps[-1].startswith("setup/levels/")
    assert len(set(steps)) <= 12, steps
    assert len(steps) - len(set(steps)) <= 5, steps
