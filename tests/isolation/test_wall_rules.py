"""Which page of which file was judged, interpreted, on a made-up kernel of a few words."""

import pytest
from tests.support.made_up_kernel import OBJECTS, OTHER, OWN, PAGE, ROOT, TOP, Kernel

from thinbox.isolation import view_rules, wall_rules

MAPPING, INODE = OBJECTS + 0x800, OBJECTS + 0x880
TENANT, TASK = 3, 7
AT = 0x10000 + 64 * 7
READ_BY_ALL, OWNER, NUMBER, GENERATION = 0o100644, 1000, 42, 0xDEADBEEF


class WithFile(Kernel):
    """Page 7 is page cache of a file that another tenant's process brought in."""

    def __init__(self):
        super().__init__(view_rules.STRICT)
        self.seen = [0] * wall_rules.SEEN_WORDS
        self.page(memcg=OTHER, mapping=MAPPING)
        self.store(MAPPING + 8, INODE)
        self.inode()

    def inode(self, *, mode=READ_BY_ALL, owner=OWNER, group=OWNER, place=MAPPING, number=NUMBER, generation=GENERATION):
        values = ((0, mode << 16), (8, owner), (16, group), (24, place), (32, number), (40, generation << 32))
        for at, value in values:
            self.store(INODE + at, value)

    @property
    def where(self):
        return (self.words, TOP, 0x1000, self.view)

    def note(self):
        return wall_rules.note_file(*self.where, self.seen, AT)

    def is_as_seen(self):
        return wall_rules.is_as_seen(*self.where, self.seen, AT)

    def admits(self, *, is_store=False, tenant=TENANT, task=TASK):
        return wall_rules.is_admitted(*self.where, self.seen, tenant, task, 0, PAGE, is_store)


@pytest.fixture
def kernel():
    kernel = WithFile()
    assert not kernel.is_as_seen()
    assert kernel.note()
    assert kernel.is_as_seen()
    return kernel


CHANGES = {
    "another page of the same frame's": lambda kernel: kernel.page(memcg=OTHER, mapping=MAPPING + 8),
    "charged to another": lambda kernel: kernel.page(memcg=ROOT, mapping=MAPPING),
    "charged to nobody": lambda kernel: kernel.page(memcg=0, mapping=MAPPING),
    "memory of a process": lambda kernel: kernel.page(memcg=OTHER, mapping=MAPPING | 1),
    "closed by its owner": lambda kernel: kernel.inode(mode=0o100600),
    "another's file": lambda kernel: kernel.inode(owner=0),
    "another group's file": lambda kernel: kernel.inode(group=0),
    "in another file system": lambda kernel: kernel.inode(place=INODE),
    "a new file where the old one was": lambda kernel: kernel.inode(number=NUMBER + 1),
    "a new file with the old one's number": lambda kernel: kernel.inode(generation=1),
    "an inode that cannot be read": lambda kernel: kernel.store(MAPPING + 8, -(1 << 20)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_page_that_is_not_what_was_judged_is_judged_again(kernel, change):
    kernel.seen[wall_rules.SEEN_READ], kernel.seen[wall_rules.SEEN_WRITE] = TENANT, TASK
    assert kernel.admits()
    assert kernel.admits(is_store=True)
    change(kernel)
    assert not kernel.is_as_seen()
    assert not kernel.admits()
    assert not kernel.admits(is_store=True)


def test_what_was_judged_is_one_tenants_and_one_tasks(kernel):
    kernel.seen[wall_rules.SEEN_READ] = TENANT
    assert kernel.admits()
    assert not kernel.admits(tenant=TENANT + 1)
    assert not kernel.admits(is_store=True), "who may read a file may not write it"
    kernel.seen[wall_rules.SEEN_WRITE] = TASK
    assert not kernel.admits(is_store=True, task=TASK + 1)


def test_a_page_that_is_noted_anew_is_nobodys(kernel):
    kernel.seen[wall_rules.SEEN_READ] = kernel.seen[wall_rules.SEEN_WRITE] = TENANT
    kernel.inode(number=NUMBER + 1)
    assert kernel.note()
    assert (kernel.seen[wall_rules.SEEN_READ], kernel.seen[wall_rules.SEEN_WRITE]) == (0, 0)


@pytest.mark.parametrize("page", [{"memcg": OWN}, {"memcg": OWN, "mapping": MAPPING | 1}, {"mapping": MAPPING}])
def test_nothing_but_charged_page_cache_is_remembered(page):
    kernel = WithFile()
    kernel.page(**page)
    assert not kernel.note()
    assert kernel.seen == [0] * wall_rules.SEEN_WORDS


def test_the_struct_page_is_where_the_array_has_it():
    kernel = WithFile()
    assert view_rules.find_page(*kernel.where, PAGE) == AT
