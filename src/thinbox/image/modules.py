"""The modules of one kernel: found by name or by what the kernel asks for, in the order in which they are loaded.

Why it exists: `--modules nf_tables` has to bring what nf_tables needs, and the kernel asks by alias (`net-pf-40`,
`fs-overlay`). What `depmod` and `modprobe` do with files of an installation is done here with a package's.

Rules of this file:
- Nothing but what the source holds is ever returned.
- A module is returned behind all that it depends on; a softdep that is not there is left out, as modprobe does.

Source: modprobe(8), modprobe.d(5), depmod(8); kmod's libkmod/libkmod-module.c (order of softdeps).
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from thinbox.errors import InputError, KernelImageError, did_you_mean
from thinbox.image.cache import cache_dir, read_sealed, store_sealed
from thinbox.image.module_file import ModuleInfo, name_of_file, parse_module, parse_pairs, plain_name, unpack_module
from thinbox.image.module_source import LISTS, ModuleSource, PackagedModules, find_module_sources
from thinbox.image.source import KernelFile, Progress

_INDEX = "index.v1"
_WILD = frozenset("*?[")


@dataclass(frozen=True, slots=True)
class Module:
    """A module to load: its name, and its unpacked bytes, signature included."""

    name: str
    data: bytes


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What is loaded, in order. The kernel must take all that are `required`, and one of each group in `choices`; it
    may refuse the others (drivers of devices that are not there, faster ciphers for another CPU)."""

    names: tuple[str, ...]
    required: frozenset[str]
    choices: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class _Index:
    """What a source holds: each module and the path of its file, and what is in the kernel itself."""

    modules: dict[str, ModuleInfo]
    paths: dict[str, str]
    builtin: dict[str, tuple[str, ...]]
    """Names of what is built in, and their aliases."""


class ModuleLibrary:
    """The modules of one kernel; nothing is read before the first question."""

    def __init__(
        self, kernel: KernelFile | None, release: str, given: Path | None = None, progress: Progress | None = None
    ) -> None:
        self.release = release
        self._kernel, self._given = kernel, given
        self._say: Progress = progress or (lambda _line: None)
        self._opened: tuple[ModuleSource, _Index] | None = None

    def require(self, names: Iterable[str]) -> LoadOrder:
        """Return what to load for modules that the user names; what is built in needs nothing.

        Raises:
            InputError: there is no such module, or it, or what it needs, is of another kernel.
        """
        groups: list[tuple[str, ...]] = []
        source, index = self._open()
        for name in names:
            found = self.find(name)
            if found is None:
                hint = did_you_mean(plain_name(name), [*index.modules, *index.builtin])
                raise InputError(f"there is no module {name!r} in {source.title}{hint}")
            groups.append(found)
        return self.order(groups)

    def find(self, name: str) -> tuple[str, ...] | None:
        """Return the modules that a name or an alias means; () if it is in the kernel itself; None for what is not
        known."""
        index, name = self._open()[1], plain_name(name)
        if name in index.modules:
            return (name,)
        if name in index.builtin:
            return ()
        found = tuple(module.name for module in index.modules.values() if _answers(module.aliases, name))
        if found:
            return found
        return () if any(_answers(aliases, name) for aliases in index.builtin.values()) else None

    def order(self, groups: Iterable[tuple[str, ...]]) -> LoadOrder:
        """Return these modules and all that they need, each behind what it needs. A group is what one name means: the
        modules of an alias, of which one will do.

        Raises:
            InputError: one that is needed is not there, or is of another kernel.
        """
        done: dict[str, None] = {}
        required: set[str] = set()
        choices = []
        for group in groups:
            if len(group) > 1:
                choices.append(group)
            for name in group:
                self._add(name, done, required, is_required=len(group) == 1)
        return LoadOrder(tuple(done), frozenset(required), tuple(choices))

    def _add(self, name: str, done: dict[str, None], required: set[str], *, is_required: bool) -> None:
        """Add to `done` a module, behind what it needs."""
        seen: set[str] = set()

        def add(name: str, *, is_required: bool) -> None:
            if name in seen or name in self._open()[1].builtin:
                return
            seen.add(name)
            module = self._module(name)
            for other in module.depends:
                add(other, is_required=is_required)
            for other in module.before:
                for found in self.find(other) or ():
                    add(found, is_required=False)
            done[name] = None
            if is_required:
                required.add(name)
            for other in module.after:
                for found in self.find(other) or ():
                    add(found, is_required=False)

        add(name, is_required=is_required)

    def _module(self, name: str) -> ModuleInfo:
        source, index = self._open()
        module = index.modules.get(name)
        if module is None:
            raise InputError(f"the module {name!r}, which is needed, is not in {source.title}")
        if module.release != self.release:
            raise InputError(
                f"module {name} in {source.title} is of kernel {module.release}, and this is {self.release}; "
                "give this kernel's with --modules-from DIR"
            )
        return module

    def load(self, names: Iterable[str]) -> Iterator[Module]:
        """Yield these modules, and no others, with their bytes.

        Raises:
            KernelImageError: a file cannot be read any more.
        """
        source, index = self._open()
        names = tuple(names)
        found = {name: data for name in names if (data := self._cached(source, name)) is not None}
        missing = {index.paths[name]: name for name in names if name not in found}
        if missing:
            self._say(f"taking {', '.join(missing.values())} out of {source.title}")
            for path, data in source.read(missing.__contains__):
                name = missing[path]
                found[name] = _unpacked(data, path)
                if isinstance(source, PackagedModules):
                    store_sealed(_folder(source) / f"{name}.ko", found[name])
        for name in names:
            if name not in found:
                raise KernelImageError(f"module {name} is no longer in {source.title}")
            yield Module(name, found[name])

    @staticmethod
    def _cached(source: ModuleSource, name: str) -> bytes | None:
        return read_sealed(_folder(source) / f"{name}.ko") if isinstance(source, PackagedModules) else None

    def _open(self) -> tuple[ModuleSource, _Index]:
        if self._opened is None:
            for source in find_module_sources(self._kernel, self.release, self._given, self._say):
                index = self._index(source)
                if index.modules:
                    self._opened = source, index
                    break
            else:
                raise InputError(f"{self._given} holds no kernel modules; give their folder, or the package")
        return self._opened

    def _index(self, source: ModuleSource) -> _Index:
        path = _folder(source) / f"{_INDEX}.{self.release}"
        stored = read_sealed(path)
        if stored is not None:
            return _from_json(json.loads(stored))
        self._say(f"reading what modules {source.title} holds (once)")
        index = _Index({}, {}, {})
        for file, data in source.read(lambda _path: True):
            if file.rpartition("/")[2] in LISTS:
                _add_builtin(index, file, data)
                continue
            try:
                module = parse_module(unpack_module(data))
            except KernelImageError as error:
                self._say(f"warning: {file} in {source.title} is left out: {error}")
                continue
            known = index.modules.get(module.name)
            # A folder may hold the modules of several kernels.
            if known is None or (known.release != self.release and module.release == self.release):
                index.modules[module.name], index.paths[module.name] = module, file
        store_sealed(path, json.dumps(_to_json(index)).encode())
        return index


def _answers(aliases: tuple[str, ...], name: str) -> bool:
    return any(alias == name or (not _WILD.isdisjoint(alias) and fnmatchcase(name, alias)) for alias in aliases)


def _unpacked(data: bytes, path: str) -> bytes:
    try:
        return unpack_module(data)
    except KernelImageError as error:
        raise KernelImageError(f"{path}: {error}") from error


def _folder(source: ModuleSource) -> Path:
    return cache_dir() / "modules" / source.key[:32]


def _add_builtin(index: _Index, file: str, data: bytes) -> None:
    if file.endswith(".modinfo"):
        # Each value has its module's name before it: "ext4.alias=fs-ext4".
        for word, values in parse_pairs(data).items():
            name, dot, kind = word.partition(".")
            if dot and kind == "alias":
                known = index.builtin.get(plain_name(name), ())
                index.builtin[plain_name(name)] = (*known, *map(plain_name, values))
        return
    for line in data.decode("utf-8", "replace").splitlines():
        if (found := name_of_file(line.strip())) is not None:
            index.builtin.setdefault(found, ())


def _to_json(index: _Index) -> dict[str, Any]:
    rows = {
        name: [index.paths[name], m.release, m.depends, m.before, m.after, m.aliases, m.signed]
        for name, m in index.modules.items()
    }
    return {"modules": rows, "builtin": index.builtin}


def _from_json(stored: dict[str, Any]) -> _Index:
    index = _Index({}, {}, {name: tuple(aliases) for name, aliases in stored["builtin"].items()})
    for name, (path, release, depends, before, after, aliases, signed) in stored["modules"].items():
        names = (tuple(depends), tuple(before), tuple(after), tuple(aliases))
        index.modules[name] = ModuleInfo(name, release, *names, signed=signed)
        index.paths[name] = path
    return index


__all__ = ["LoadOrder", "Module", "ModuleLibrary"]
