"""Boot: a kernel image and a machine become a guest that waits, in user space, for its first tenant."""

import importlib
import sys
from types import ModuleType
from typing import Any


class _Room(ModuleType):
    """This package. Python makes it the name `boot` of `thinbox` as soon as it is imported, where the public API has a
    function: so it is called as that is."""

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """As `thinbox.api.boot`."""
        return importlib.import_module("thinbox.api").boot(*arguments, **options)


sys.modules[__name__].__class__ = _Room
