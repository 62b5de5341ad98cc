"""Tie a rank to the life of its launcher; the first import of `fedddp.train`, seconds before torch is there.

Once torch is imported, `fedddp.comm.interrupt` watches the launcher, and a rank ends in order. Until then nothing is
written, and the kernel kills the rank with the thread that started it, which in torchrun waits for the ranks.
"""

import ctypes
import os
import signal
import sys
from contextlib import suppress

LAUNCHER = "FEDDDP_LAUNCHER"
"""Environment variable in which `fedddp launch` gives its process id: a rank may find it dead."""
OPTIONS = "FEDDDP_LAUNCH_OPTIONS"
"""Environment variable with the options of `fedddp launch`, for the command line that continues the run."""
PR_SET_PDEATHSIG = 1  # prctl.h of Linux

parent = os.getppid()
"""The process that started this one, as far as it was alive when this module was imported."""


def tie(death: int = signal.SIGKILL) -> None:
    """Let the kernel send this process the signal ``death`` when its parent dies; 0 for none."""
    with suppress(OSError, AttributeError):  # not Linux
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(death), 0, 0, 0)


if "TORCHELASTIC_RUN_ID" in os.environ:
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # else a lost store prints its C++ stack beside the one line
    tie()
    if os.getppid() != int(os.environ.get(LAUNCHER, parent)):
        sys.exit("fedddp: the launcher died before this rank began: stopped")
