"""``fedddp new``: write a small project from a template in the package, without torch and without network."""

import re
from argparse import Namespace
from pathlib import Path
from string import Template

from ..errors import UsageError
from ..registry.spelling import suggestion

TEMPLATES = Path(__file__).parents[1] / "templates"
SOLUTION = "solution"
NAMED = (".md", ".toml")
"""Files in which ``$name`` is the project's name."""


def templates() -> list[str]:
    """The names of the templates."""
    return sorted(path.name for path in TEMPLATES.iterdir() if (path / "config.toml").is_file())


def answer(args: Namespace) -> str:
    """Write what ``args`` ask for (`fedddp.cli.options.new`) and return what to do with it. Raises UsageError."""
    if args.template not in templates():
        near = suggestion(args.template, templates())
        raise UsageError(f"--template={args.template}: unknown{near or ';'} there are {', '.join(templates())}")
    if not re.fullmatch(r"[A-Za-z0-9][\w-]{0,99}", args.folder.name, re.ASCII):
        raise UsageError(
            f"NAME={args.folder.name!r}: a project is named by letters, digits, - and _, such as first-federation"
        )
    source = TEMPLATES / args.template
    files = [path for path in sorted(source.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    if args.without_solution:
        if not (source / SOLUTION).is_dir():
            raise UsageError(f"--without-solution: template {args.template} has no solution; leave it out")
        files = [path for path in files if SOLUTION not in path.parts]
    try:
        args.folder.mkdir(parents=True)
        for path in files:
            _copy(path, args.folder / path.relative_to(source), args.folder.name)
    except FileExistsError:
        raise UsageError(f"{args.folder}: exists already; choose another name, or remove it") from None
    except OSError as error:
        raise UsageError(f"{args.folder}: cannot be written ({error.strerror})") from None
    made = "\n".join(f"  {path.relative_to(source)}" for path in files)
    how = f"  cd {args.folder}\n  pytest\n  fedddp train config.toml\n  fedddp report runs/{args.folder.name}"
    return f"{args.folder} from template {args.template}:\n{made}\n\nnext, see {args.folder}/README.md:\n{how}"


def _copy(path: Path, to: Path, name: str) -> None:
    """Copy a file of a template, with the project's name in it."""
    text = path.read_text(encoding="utf-8")
    to.parent.mkdir(exist_ok=True)
    to.write_text(Template(text).safe_substitute(name=name) if path.suffix in NAMED else text, encoding="utf-8")
