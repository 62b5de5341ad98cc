"""Put a report together: texts of a language, numbers as they are read, and the template."""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader

from ... import __version__

HERE = Path(__file__).parent
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class Texts:
    """The texts of a language by name (texts.toml)."""

    language: str
    table: dict[str, str]

    @classmethod
    def of(cls, language: str) -> "Texts":
        return cls(language, tomllib.loads((HERE / "texts.toml").read_text(encoding="utf-8"))[language])

    def __call__(self, name: str, **values: Any) -> str:
        return self.table[name].format(**values)


def number(value: Any) -> str:
    """A value as a reader takes it in: four significant digits, thousands apart."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.1f}" if abs(value) >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def setting(value: Any) -> str:
    """A value of a configuration, as its file has it; what is not set, as a dash."""
    return str(value).lower() if isinstance(value, bool) else "-" if value in (None, "") else str(value)


def size(value: float | None) -> str:
    """Bytes with a unit."""
    if value is None:
        return "-"
    amount, units = float(value), ["B", "kB", "MB", "GB", "TB"]
    while amount >= 1000 and len(units) > 1:
        amount, units = amount / 1000, units[1:]
    return f"{amount:.4g} {units[0]}"


def page(texts: Texts, **content: Any) -> str:
    """The report as HTML. Whatever comes from a run is escaped."""
    environment = Environment(loader=FileSystemLoader(HERE), autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"number": number, "setting": setting, "size": size}
    return environment.get_template("report.html").render(t=texts, version=__version__, **content)
