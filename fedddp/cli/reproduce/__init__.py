"""Published tables: each a sweep that comes with the package, and the numbers in published.toml."""
