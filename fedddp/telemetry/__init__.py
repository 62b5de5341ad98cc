"""What a run tells: metrics, progress, TensorBoard. What is printed or written for a reader goes through here."""

from .files import Files, rewind
from .progress import log_to_stderr, progress, summary_table
from .stopwatch import Stopwatch
from .telemetry import InBackground, Metrics, RoundRecord, Sink, Telemetry

__all__ = [
    "Files",
    "InBackground",
    "Metrics",
    "RoundRecord",
    "Sink",
    "Stopwatch",
    "Telemetry",
    "log_to_stderr",
    "progress",
    "rewind",
    "summary_table",
]
