"""Optional packages: ``ray`` and ``flower`` of ``pyproject.toml``."""


def how_to_install(extra: str) -> str:
    """What to type; fedsim is installed from its checkout, not from a package index."""
    return f"pip install '.[{extra}]' in a checkout of fedsim"
