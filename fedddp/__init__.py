"""fedddp: federated learning as a torch.distributed program."""

__version__ = "0.1.0"
