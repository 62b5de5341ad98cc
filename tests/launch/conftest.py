"""What tests of whole programs share: programs that are started, and gone when a test ends, however it ends."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

Program = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def program(tmp_path: Path) -> Iterator[Program]:
    """program(command, env, cwd=tmp_path) starts one, in a session of its own; all it prints is in its ``stdout``."""
    started: list[subprocess.Popen[str]] = []

    def start(command: list[str], env: Mapping[str, str], cwd: Path = tmp_path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()  # ranks of fedddp follow the one that started them
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
