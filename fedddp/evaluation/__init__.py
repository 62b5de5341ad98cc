"""Evaluation of the global model on the server's test set, and of clients' models on held-out data."""
