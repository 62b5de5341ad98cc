"""Files of a run: its folder, checkpoints, exported weights and the record of privacy spent."""
