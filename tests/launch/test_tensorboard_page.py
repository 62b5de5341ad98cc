"""TensorBoard in a real browser: the pages show the run. Skipped where there is no Chromium."""

import shutil
import socket
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

import matplotlib.image
import pytest

from fedddp.train import main
from tests.helpers.waiting import until

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1400,2400",
    "--virtual-time-budget=20000",
]


@pytest.fixture
def tensorboard(tmp_path):
    """The address of a TensorBoard over one short run."""
    words = ["--model.name=mlp", "--run.rounds=2", "--data.partition.num_clients=40", "--cohort.size=4"]
    assert main([*words, "--run.name=digits", f"--run.dir={tmp_path / 'runs'}"]) == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, "-m", "fedddp", "tensorboard", str(tmp_path / "runs"), f"--port={port}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    address = f"http://127.0.0.1:{port}"
    try:
        until(lambda: _lists_the_run(address))
        yield address
    finally:
        server.terminate()
        server.wait()


def _lists_the_run(address: str) -> bool:
    try:
        return b"digits" in urllib.request.urlopen(f"{address}/data/runs", timeout=5).read()
    except OSError:
        return False


def browse(url: str, tmp_path: Path, picture: Path | None = None) -> str:
    """The page as it stands after its scripts ran; a screenshot of it if asked for."""
    assert BROWSER is not None
    profile = f"--user-data-dir={tempfile.mkdtemp(dir=tmp_path)}"
    what = f"--screenshot={picture}" if picture else "--dump-dom"
    result = subprocess.run([BROWSER, *QUIET, profile, what, url], capture_output=True, text=True, timeout=120)
    return result.stdout


def expect(url: str, tmp_path: Path, *shown: str) -> None:
    """The page shows these words; it may need another look, since the browser's clock does not wait for the server."""
    for _ in range(5):
        page = browse(url, tmp_path)
        missing = [word for word in shown if word not in page]
        if not missing:
            return
    raise AssertionError(f"{url} does not show {missing}")


@pytest.mark.skipif(BROWSER is None, reason="no Chromium on PATH")
def test_scalar_and_image_pages_show_the_run(tensorboard, tmp_path):
    pages = (
        "digits",
        "1 learning",
        "accuracy test",
        "2 clients",
        "5 system",
        "confusion",
        "partition",
    )
    expect(f"{tensorboard}/#timeseries", tmp_path, *pages)
    for _ in range(5):
        browse(f"{tensorboard}/#images", tmp_path, tmp_path / "images.png")
        pixels = matplotlib.image.imread(tmp_path / "images.png")[200:, 500:, :3]  # without side bar and title bar
        coloured = int((pixels.max(axis=2) - pixels.min(axis=2) > 0.2).sum())
        if coloured > 5000:
            return
    raise AssertionError(f"{coloured} coloured pixels: the partition and the confusion matrix are not on the page")
