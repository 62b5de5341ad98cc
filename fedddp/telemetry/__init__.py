"""Report a run: metrics, progress, TensorBoard. All that is printed or written for a reader goes through here."""

from .beside import Beside, InBackground, SideWork
from .clients_file import ClientsFile
from .files import Files, rewind
from .pace import Plan
from .progress import Divergence, progress, summary_table
from .telemetry import LastScore, Metrics, RoundRecord, Sink, Stopwatch, Telemetry, primary
from .terminal import console, lasting_output, log_to_stderr, on_terminal

__all__ = [
    "Beside",
    "ClientsFile",
    "Divergence",
    "Files",
    "InBackground",
    "LastScore",
    "Metrics",
    "Plan",
    "RoundRecord",
    "SideWork",
    "Sink",
    "Stopwatch",
    "Telemetry",
    "console",
    "lasting_output",
    "log_to_stderr",
    "on_terminal",
    "primary",
    "progress",
    "rewind",
    "summary_table",
]
