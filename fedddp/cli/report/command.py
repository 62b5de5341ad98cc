"""Write a report of the runs on a command line."""

from argparse import Namespace

from ...config import UsageError
from .content import several, single
from .page import Texts, page
from .runs import found


def run(args: Namespace) -> None:
    """Write what ``args`` ask for; see `fedddp.cli.options.report`."""
    runs, texts = found(args.runs), Texts.of(args.lang)
    one, first = len(runs) == 1, args.runs[0]
    path = args.out or (first if len(args.runs) == 1 else first.absolute().parent) / "report.html"
    html = page(texts, one=single(runs[0], texts) if one else None, all=None if one else several(runs, texts))
    try:
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--out={path}: cannot be written ({error.strerror}); name another file") from None
    what = runs[0].name if one else f"{len(runs)} runs"
    print(f"report of {what}: {path} ({len(html.encode()) / 1000:.0f} kB)")
