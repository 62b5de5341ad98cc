"""Let a trained model go on with a text: python write.py runs/NAME "To be, or " """

import sys

import torch

import fedddp


def continued(run: str, text: str, length: int = 120, seed: int = 0) -> str:
    """``text`` and ``length`` more characters, each drawn from what the model expects."""
    model, stream = fedddp.load(run), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(length):
            x = torch.tensor([[ord(c) - 30 if " " <= c <= "~" else 1 for c in text[-80:]]])
            chances = model(x)[0, -1].softmax(dim=-1)
            chances[0] = 0  # no padding
            token = int(torch.multinomial(chances, 1, generator=stream))
            text += "\n" if token == 1 else chr(token + 30)
    return text


if __name__ == "__main__":
    print(continued(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "To be, or "))
