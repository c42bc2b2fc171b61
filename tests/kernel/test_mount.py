"""All mounts of a namespace are found, in a list or in a tree; neither may go on for ever."""

from tests.support.fake_facts import fake_facts
from thinbox.kernel.mount import MOST_MOUNTS, find_mount_shape

MEMBERS = {
    "task_struct.nsproxy": 0, "nsproxy.mnt_ns": 0, "mount.mnt.mnt_sb": 40, "rb_node.rb_left": 16, "rb_node.rb_right": 8,
    "mnt_namespace.mounts": 32,
}  # fmt: skip
TREE = find_mount_shape(fake_facts(members=MEMBERS | {"mount.mnt_node": 64, "mount.mnt_list": 152}))
LIST = find_mount_shape(fake_facts(members=MEMBERS | {"mount.mnt_list": 144, "mnt_namespace.list": 24}))
TASK, PROXY, NAMESPACE = 0x1000, 0x2000, 0x3000


def blocks(shape, words):
    read = lambda vaddr: {TASK: PROXY, PROXY: NAMESPACE, **words}.get(vaddr, 0)
    return list(shape.super_blocks(TASK, read))


def test_a_tree():
    a, b, c = 0x4000, 0x5000, 0x6000
    words = {NAMESPACE + 32: a, a + 16: b, a + 8: c}
    words |= {node + 40 - 64: number for number, node in enumerate((a, b, c), 7)}
    assert sorted(blocks(TREE, words)) == [7, 8, 9]


def test_a_list_whose_namespace_has_a_number_called_mounts():
    head, a, b = NAMESPACE + 24, 0x4000, 0x5000
    words = {head: a, a: b, b: head, a + 40 - 144: 7, b + 40 - 144: 8}
    assert blocks(LIST, words) == [7, 8]


def test_a_forged_one_that_leads_back_to_itself_ends():
    assert len(blocks(LIST, {NAMESPACE + 24: 0x4000, 0x4000: 0x4000})) == MOST_MOUNTS
    assert len(blocks(TREE, {NAMESPACE + 32: 0x4000, 0x4008: 0x4000})) <= 2 * MOST_MOUNTS


def test_on_real_kernels(real_facts):
    assert find_mount_shape(real_facts).is_tree is real_facts.types.has_member("mount", "mnt_node")
