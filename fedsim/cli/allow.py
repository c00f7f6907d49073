"""What the settings of a command may import: fedsim's own components, names in flags, and what ``--allow`` names."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from fedsim.errors import ConfigError

OWN = (
    "algorithms", "topologies", "fedsim.clock", "fedsim.compress", "fedsim.engine.augmentation",
    "fedsim.engine.optimizers", "fedsim.experiment.adaptive", "fedsim.experiment.measures",
    "fedsim.experiment.schedule", "fedsim.feedback", "fedsim.models", "fedsim.partition", "fedsim.problems",
    "fedsim.robust",
)  # fmt: skip
"""Modules of components. Other modules of fedsim have functions that write files."""
HELP = "module whose classes a file or a run may name; importing it runs its code (or FEDSIM_ALLOW=MODULE,...)"
REFUSAL = (
    "which a file names. A module outside fedsim is imported for a file only if you say so, as importing it runs its"
    " code: --allow {module}"
)
DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def taken(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Split a command line into its other words, and the modules that ``--allow`` and FEDSIM_ALLOW name.

    Raises:
        ConfigError: ``--allow`` without a module.
    """
    rest, modules = list[str](), [name for name in os.environ.get("FEDSIM_ALLOW", "").split(",") if name.strip()]
    words = iter(argv)
    for word in words:
        name, given, value = word.partition("=")
        if name != "--allow":
            rest.append(word)
            continue
        value = value if given else next(words, "")
        if not all(DOTTED.fullmatch(module) or module.isidentifier() for module in value.split(",")):
            raise ConfigError(f"--allow is {value!r}; expected a module, such as my_module")
        modules += value.split(",")
    return rest, [module.strip() for module in modules]


def typed(argv: Sequence[str]) -> list[str]:
    """Dotted names in the values of flags: who types the name of a class allows it."""
    values = [
        word.partition("=")[2] if word.startswith("-") else word
        for before, word in zip(["", *argv], argv, strict=False)
        if word.startswith("-") or (before.startswith("--") and "=" not in before)
    ]
    return [name for value in values for name in DOTTED.findall(value)]
