"""Export the model of a run to files that other programs read, with a model card."""
