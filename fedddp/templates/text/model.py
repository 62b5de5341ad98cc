"""A character model: scores of the next character at each position."""

from torch import Tensor, nn

CHARACTERS = 97  # 0 pads, 1 ends a line, the others are the printable characters of ASCII


class Net(nn.Module):
    """Characters [B, T] to scores [B, T, 97], by a recurrent layer that reads from left to right."""

    def __init__(self, hidden: int = 64, embedding: int = 32):
        super().__init__()
        self.table = nn.Embedding(CHARACTERS, embedding)
        self.reader = nn.GRU(embedding, hidden, batch_first=True)
        self.scores = nn.Linear(hidden, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        return self.scores(self.reader(self.table(x))[0])
