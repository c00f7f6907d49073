"""Values as TOML, which is how Flower takes settings: in files, and as one argument ``key="value" other=1``."""

from __future__ import annotations

import json
from typing import Any


def as_toml(value: Any) -> str:
    """Format a number or string as TOML, whose strings are JSON's but for two things.

    Flower looks for the closing quotation mark of an argument without heeding backslashes, so one inside is written by
    its number; and TOML has no pairs of surrogates, so characters stay as they are.
    """
    text = json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return text.replace('\\\\', "\\u005c").replace('\\"', "\\u0022")
