"""What is tried at start, before any rank connects and before anything is written."""

from .dry_run import laid_out, rehearse, two_examples
from .prepared import Prepared
from .task import check_dataset, check_task, task_of

__all__ = ["Prepared", "check_dataset", "check_task", "laid_out", "rehearse", "task_of", "two_examples"]
