"""Change something in a file: bytes, a value of a document, an array. All of it follows from one `random.Random`."""

import json
import math
from random import Random

import numpy as np

NUMBERS = [
    *(0, 1, -1, 2, 7, 0.5, -0.0, 1e-45, 3.5, 255, 256, 1e9, -1e9, 1e30, 1e308, math.inf, -math.inf, math.nan),
    *(2**31 - 1, 2**31, 2**32, 2**53 + 1, 2**62, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 2**64, 10**30, 10**400),
]
WORDS = [
    *("", " ", "\0", "nan", "off", "auto", "[]", "x" * 300, "é\u202e", "a\nb", "%s", "1", "1e3", ":", "/", "..", "~"),
    *("/dev/zero", "/proc/self/mem", "torch.nn:Linear", "fedddp.optim:SGD", "no.such:Thing", "{rank}", "-1"),
]
OTHERS = [True, False, None, [], {}, [1], [[]], [0, -1], [1, "x"], {"name": "x"}, {"name": 1}, {"a": {"b": {}}}]
VALUES = [*NUMBERS, *WORDS, *OTHERS]
BYTES = [
    b"\0",
    b"\xff",
    b"\n",
    b'"',
    b"[",
    b"{",
    b",",
    b"-",
    b"9" * 30,
    b"\xff\xff\xff\xff",
    b"\x7f\xff\xff\xff",
    b"NaN",
]
KINDS = ["int8", "uint8", "int32", "int64", "uint64", "float16", "float32", "float64", "complex64", "bool", ">i4", "U3",
         "S2", "datetime64[s]"]  # fmt: skip


def of_bytes(content: bytes, draw: Random) -> bytes:
    """``content`` with one to four pieces flipped, cut, doubled, moved or replaced."""
    data = bytearray(content)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(data) + 1)
        length = draw.choice([1, 1, 2, 4, 8, 64])
        how = draw.randrange(6)
        if how == 0 and data:
            data[at % len(data)] ^= 1 << draw.randrange(8)
        elif how == 1:
            data[at : at + length] = b""
        elif how == 2:
            data[at:at] = data[at : at + length]
        elif how == 3:
            data[at : at + length] = draw.choice(BYTES)
        elif how == 4:
            data[at : at + length] = draw.randbytes(length)
        elif draw.random() < 0.3:
            del data[at:]
    return bytes(data)


def of_value(value, draw: Random):
    """A document with one value, at any depth, replaced, removed, doubled or moved."""
    if isinstance(value, dict) and value and draw.random() < 0.9:
        key = draw.choice([*value])
        how = draw.random()
        if how < 0.08:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.12:
            return {**value, draw.choice(WORDS): value[key]}
        return {**value, key: of_value(value[key], draw)}
    if isinstance(value, list) and value and draw.random() < 0.9:
        at, how = draw.randrange(len(value)), draw.random()
        if how < 0.08:
            return value[:at] + value[at + 1 :]
        if how < 0.16:
            return value[: at + 1] + value[at:]
        return [*value[:at], of_value(value[at], draw), *value[at + 1 :]]
    return draw.choice(VALUES)


def of_json(content: bytes, draw: Random) -> bytes:
    """JSON text, with another value or other bytes."""
    if draw.random() < 0.3:
        return of_bytes(content, draw)
    return json.dumps(of_value(json.loads(content), draw), default=str).encode(errors="surrogatepass")


def of_lines(content: bytes, draw: Random) -> bytes:
    """Lines, of which some are JSON: one changed, removed, doubled or moved to the end."""
    lines = content.split(b"\n")
    at, how = draw.randrange(len(lines)), draw.randrange(5)
    if how == 0:
        del lines[at]
    elif how == 1:
        lines.append(lines[at])
    elif how == 2:
        lines[at] = of_json(lines[at], draw) if lines[at].startswith((b"{", b"[")) else of_bytes(lines[at], draw)
    elif how == 3:
        cells = lines[at].split(b",")
        cells[draw.randrange(len(cells))] = str(draw.choice(VALUES)).encode(errors="surrogatepass")
        lines[at] = b",".join(cells)
    else:
        return of_bytes(content, draw)
    return b"\n".join(lines)


def of_array(array: np.ndarray, draw: Random) -> np.ndarray:
    """An array of another type or shape, or with other numbers."""
    how = draw.randrange(5)
    if not array.size:
        return array
    with np.errstate(all="ignore"):
        if how == 0:
            return array.astype(draw.choice(KINDS))
        if how == 1:
            shapes = [array.reshape(-1), array[:0], array[..., None], array.reshape(1, -1), array[:1], array[::-1]]
            return draw.choice([*shapes, array.ravel()[0]])
        if how == 2:
            return np.concatenate([array, array[: draw.randint(1, 3)]])
        numbers = [n for n in NUMBERS if abs(n) < 2**63 or array.dtype.kind == "f"]
        flat = array.copy().ravel()
        flat[draw.randrange(len(flat))] = np.array(draw.choice(numbers), dtype=np.float64).astype(array.dtype)
        if how == 4 and array.dtype.kind in "iu":
            flat[draw.randrange(len(flat))] = np.iinfo(array.dtype).max
        return flat.reshape(array.shape)
