"""Readers of data in common layouts, each a loader of `DATASETS`."""

from .arrays import arrays
from .huggingface import hugging_face
from .images import image_folder
from .jsonl import jsonl
from .leaf import leaf
from .shakespeare import shakespeare, shakespeare_mini

READERS = {
    "imagefolder": image_folder,
    "npz": arrays,
    "hf": hugging_face,
    "jsonl": jsonl,
    "leaf": leaf,
    "shakespeare": shakespeare,
    "shakespeare-mini": shakespeare_mini,
}

__all__ = ["READERS"]
