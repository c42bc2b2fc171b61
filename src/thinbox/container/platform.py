"""Which platform an image is for, and how well it fits the guest: names as engines normalise them, levels of x86-64.

Why it exists: an index offers one image for several processors, and for several levels of one. Whoever takes the first
takes a program that ends by SIGILL, or one that leaves the processor idle.

Source: containerd/platforms, compare.go (`platformVector`: amd64/v3, v2, then none) and database.go (`normalizeArch`,
`normalizeOS`); image-spec, image-index.md, "Platform Variants".
"""

import re
from collections.abc import Mapping
from typing import Any

ARCHITECTURE = "amd64"
PLAIN_LEVEL = 1
"""x86-64-v1, which an image without a variant is for."""
_ALIASES = {"x86_64": ARCHITECTURE, "x86-64": ARCHITECTURE, "aarch64": "arm64", "i386": "386"}
_LEVEL = re.compile(r"v([1-9])")


def normal_architecture(word: object) -> str:
    """Return an architecture's name as Go has it; nothing, and what is no word, is ours."""
    text = word.lower() if isinstance(word, str) else ""
    return _ALIASES.get(text, text) or ARCHITECTURE


def normal_system(word: object) -> str:
    """Return a system's name; nothing, and what is no word, is linux."""
    return (word.lower() if isinstance(word, str) else "") or "linux"


def is_ours(value: Mapping[str, Any]) -> bool:
    """Whether `os` and `architecture` of a platform, or of a config, are linux and amd64."""
    return normal_system(value.get("os")) == "linux" and normal_architecture(value.get("architecture")) == ARCHITECTURE


def level_of(platform: Mapping[str, Any]) -> int | None:
    """Return the level of x86-64 that a platform asks for, None for a variant that is no level."""
    variant = platform.get("variant")
    if not variant:
        return PLAIN_LEVEL
    found = _LEVEL.fullmatch(variant.lower()) if isinstance(variant, str) else None
    return int(found[1]) if found else None
