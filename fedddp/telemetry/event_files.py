"""Continue TensorBoard's event files after a resume: what a killed process lost is written again, in order of rounds.

TensorBoard reads the files of a run in the order of their names and, at the start of a resumed one, drops what it has
of later steps. So the new file begins at the first round of which a point is missing: with the events of the earlier
files from there on, and the missing points between them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]
from torch.utils.tensorboard import SummaryWriter

from .series import Scalars, Series

NAMES = "events.out.tfevents.*"


class Continuation:
    """What the event files in a folder have, and what they should have of the rounds so far.

    Args:
        folder: of the event files.
        done: the rounds so far.
        expected: their scalars, by round.
    """

    def __init__(self, folder: Path, done: int, expected: Mapping[int, Scalars]) -> None:
        files = sorted(folder.glob(NAMES))
        self._newest = files[-1].name if files else ""
        shown = [event for event in _shown(files) if event.step <= done]
        lost = list(_lost(shown, expected))
        self.since = min((event.step for event in lost), default=done + 1)
        """The step at which the new file begins."""
        self._again = [event for event in shown if event.step >= self.since] + lost
        self._again.sort(key=lambda event: event.step)  # a stable sort

    def begin(self, writer: SummaryWriter) -> None:
        """Give the new file a name after the others', whatever the clock says, and write what it begins with."""
        file = writer._get_file_writer().event_writer
        _rename(writer, file, self._newest)
        for event in self._again:
            file.add_event(event)


def _shown(files: Iterable[Path]) -> list[Event]:
    """The events with values that TensorBoard has after reading ``files``; a file may end within an event."""
    shown: list[Event] = []
    for path in files:
        for content in RawEventFileLoader(str(path)).Load():
            event = Event.FromString(content)
            if event.HasField("session_log") and event.session_log.status == SessionLog.START:
                shown = [earlier for earlier in shown if earlier.step < event.step]
            elif event.HasField("summary"):
                shown.append(event)
    return shown


def _lost(shown: Iterable[Event], expected: Mapping[int, Scalars]) -> Iterable[Event]:
    """The points that a run writes for ``expected`` and that are not in ``shown``, each with the time before it."""
    there, times = set(), {0: 0.0}
    for event in shown:
        there |= {(value.tag, event.step) for value in event.summary.value}
        times[event.step] = event.wall_time
    points: list[tuple[str, float, int]] = []
    series = Series(lambda tag, value, t, _: points.append((tag, value, t)), {})
    for t, scalars in expected.items():
        series.add(scalars, t)
    for tag, value, t in points:
        if (tag, t) not in there:
            summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
            yield Event(step=t, wall_time=times[max(step for step in times if step <= t)], summary=summary)


def _rename(writer: SummaryWriter, file: Any, newest: str) -> None:
    path = Path(file._file_name)
    number = re.match(r"events\.out\.tfevents\.(\d+)", newest)
    if path.name > newest or not number:
        return
    writer.flush()  # else the file is not there yet
    later = path.with_name(re.sub(r"\d+", f"{int(number[1]) + 1:010d}", path.name, count=1))
    path.rename(later)
    file._file_name, file._general_file_writer.filename = str(later), str(later).encode()
