"""Asks a kernel for what a feature needs, and says everything that is missing at once.

Why it exists: the first missing thing, then the next one, is no answer to "can this kernel be used?".

Rules of this file: alternatives are given newest first, and the first that the kernel has is taken. What is missing
counts as 0 until `check` is called, which must be done before anything found is used.
"""

from typing import TYPE_CHECKING

from thinbox.errors import MissingFactError

if TYPE_CHECKING:
    from thinbox.image.facts import KernelFacts


class Probe:
    """The questions that `feature` asks of one kernel; `disables` says what does not work without the answers."""

    def __init__(self, facts: "KernelFacts", feature: str, disables: str) -> None:
        self.feature, self.disables = feature, disables
        self.shapes: list[str] = []
        """The alternatives that were taken."""
        self.missing: list[str] = []
        self._types, self._symbols = facts.types, facts.symbols

    def _found(self, shape: str) -> None:
        if shape not in self.shapes:
            self.shapes.append(shape)

    def lacks(self, what: str) -> None:
        """Note that the kernel has no `what`."""
        if what not in self.missing:
            self.missing.append(what)

    def has_member(self, path: str) -> bool:
        """Tell whether the kernel has the member `path` ("struct.member", which may be dotted further)."""
        return self._types.has_member(*_split(path))

    def has_type(self, name: str) -> bool:
        """Tell whether the kernel has a struct, union or typedef of that name."""
        return self._types.has_type(name)

    def has_symbol(self, name: str) -> bool:
        """Tell whether the kernel has a symbol of that very name."""
        return self._symbols.find(name) is not None

    def has_variant(self, name: str) -> bool:
        """Tell whether the kernel has a symbol of that name, or a compiler's copy of it (`.constprop.0`)."""
        return self._symbols.find_prefix(name) is not None

    def member(self, *paths: str) -> str:
        """Return the first of `paths` that the kernel has, "" if it has none."""
        for path in paths:
            if self.has_member(path):
                if len(paths) > 1:
                    self._found(path)
                return path
        self.lacks(" or ".join(paths))
        return ""

    def offset(self, *paths: str) -> int:
        """Return the bytes from the start of a struct to its member, of the first of `paths` there is."""
        found = self.member(*paths)
        return self._types.offset_of(*_split(found)) if found else 0

    def member_size(self, path: str) -> int:
        """Return the size of a member in bytes."""
        return self._types.member_size(*_split(path)) if self.member(path) else 0

    def bits(self, *paths: str) -> tuple[int, int]:
        """Return (bits from the start, bits wide) of a bit field."""
        found = self.member(*paths)
        return self._types.bits_of(*_split(found)) if found else (0, 0)

    def size(self, type_name: str) -> int:
        """Return the size of a type in bytes."""
        if self._types.has_type(type_name):
            return self._types.size_of(type_name)
        self.lacks(f"struct {type_name}")
        return 0

    def symbol(self, *names: str) -> int:
        """Return the address of the first of `names` there is."""
        for name in names:
            found = self._symbols.find(name)
            if found is not None:
                if len(names) > 1:
                    self._found(name)
                return found
        self.lacks(" or ".join(names))
        return 0

    def symbols(self, *names: str) -> tuple[int, ...]:
        """Return every address of every one of `names`, compilers' copies included; one at least must be there."""
        found = tuple(vaddr for name in names for vaddr in self._symbols.addresses_with_variants(name))
        if not found:
            self.lacks(" or ".join(names))
        for name in names if len(names) > 1 else ():
            if self._symbols.find_prefix(name) is not None:
                self._found(name)
        return found

    def enumerator(self, *names: str) -> int | None:
        """Return the value of the first of the enumerators `names` there is, None if there is none."""
        for name in names:
            try:
                value = self._types.enum_value(name)
            except KeyError:
                continue
            if len(names) > 1:
                self._found(name)
            return value
        self.lacks(" or ".join(names))
        return None

    def has_enumerator(self, name: str) -> bool:
        """Tell whether the kernel has an enumerator of that name."""
        try:
            self._types.enum_value(name)
        except KeyError:
            return False
        return True

    def parameters(self, function: str) -> tuple[str, ...]:
        """Return the names of a function's parameters; none if the kernel does not describe it."""
        try:
            return self._types.parameters_of(function)
        except KeyError:
            return ()

    def check(self) -> None:
        """Raise `MissingFactError` if anything was missing."""
        if self.missing:
            raise MissingFactError.of(self.feature, self.missing, self.disables)


def _split(path: str) -> tuple[str, str]:
    type_name, _dot, member = path.partition(".")
    return type_name, member
