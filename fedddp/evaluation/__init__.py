"""Evaluation: of the global model on the server's test set, and of what each client would deploy."""

from .clients import ClientEvaluator, ClientScores
from .server import Evaluator, Score

__all__ = ["ClientEvaluator", "ClientScores", "Evaluator", "Score"]
