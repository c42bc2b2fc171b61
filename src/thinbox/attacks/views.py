"""Views an attack can be tried under: what of other tenants' data is hidden from the attacker's calls."""

from thinbox.errors import InputError
from thinbox.isolation.view_rules import NAMES, NONE

VIEWS = NAMES
NO_VIEW = NAMES[NONE]


def require_view(name: str) -> None:
    """Refuse a view there is not, with `InputError`."""
    if name not in VIEWS:
        raise InputError(f"there is no view {name!r}; use {', '.join(VIEWS)}")
