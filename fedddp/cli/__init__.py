"""The commands of ``fedddp``, one file or folder each."""
