"""What a run tells: metrics, progress, TensorBoard. What is printed or written for a reader goes through here."""

from .beside import Beside, InBackground, SideWork
from .files import Files, rewind
from .progress import Divergence, progress, summary_table
from .stopwatch import Stopwatch
from .telemetry import Metrics, RoundRecord, Sink, Telemetry
from .terminal import console, lasting_output, log_to_stderr, on_terminal

__all__ = [
    "Beside",
    "Divergence",
    "Files",
    "InBackground",
    "Metrics",
    "RoundRecord",
    "SideWork",
    "Sink",
    "Stopwatch",
    "Telemetry",
    "console",
    "lasting_output",
    "log_to_stderr",
    "on_terminal",
    "progress",
    "rewind",
    "summary_table",
]
