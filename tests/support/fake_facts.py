"""Facts of a made-up kernel: its members, sizes, enumerators, functions and symbols are what a test says."""

from types import SimpleNamespace

from thinbox.errors import MissingFactError


class FakeTypes:
    def __init__(self, members, sizes, enums, functions):
        self.members, self.sizes, self.enums, self.functions = members, sizes, enums, functions

    def has_type(self, name):
        return name in self.sizes

    def has_member(self, name, member):
        return f"{name}.{member}" in self.members

    def offset_of(self, name, member):
        if not self.has_member(name, member):
            raise MissingFactError(f"no {name}.{member}")
        value = self.members[f"{name}.{member}"]
        return value if isinstance(value, int) else value[0] // 8

    def bits_of(self, name, member):
        return self.members[f"{name}.{member}"]

    def member_size(self, name, member):
        return 8

    def size_of(self, name):
        return self.sizes[name]

    def enum_value(self, name):
        if name not in self.enums:
            raise MissingFactError(f"no {name}")
        return self.enums[name]

    def parameters_of(self, name):
        if name not in self.functions:
            raise MissingFactError(f"no {name}")
        return self.functions[name]


class FakeSymbols:
    def __init__(self, places):
        self.places = places

    def find(self, name):
        return self.places.get(name)

    def addresses_of(self, name):
        return (self.places[name],) if name in self.places else ()

    def addresses_with_variants(self, name):
        copies = [place for other, place in self.places.items() if other.startswith(name + ".")]
        return (*self.addresses_of(name), *copies)

    def find_prefix(self, name):
        return next(iter(self.addresses_with_variants(name)), None)


def fake_facts(*symbols, members=(), sizes=(), enums=(), functions=()):
    """Symbols lie at 0x1000, 0x2000 and so on; `members`: "struct.member" -> offset, or (bit offset, bits)."""
    places = {name: 0x1000 * (number + 1) for number, name in enumerate(symbols)}
    types = FakeTypes(dict(members), dict(sizes), dict(enums), dict(functions))
    return SimpleNamespace(types=types, symbols=FakeSymbols(places))
