"""Views, the judgement: may this tenant's call map this page?

Why it exists: what `isolation.view_rules` cannot answer at once (pages of others, of nobody, of several) is judged
here, from facts about the page, by a rule that has a name: `permissive` or `strict`. See docs/views.md.

Rules of this file:
- No view lets a page through that is charged to another tenant only, but for the two exceptions written out below:
  files all may read, and the kernel's own links between tenants.
- The tenants' names are data: `None` stands for no tenant (the root cgroup, or the kernel).
"""

import enum
import re
from dataclasses import dataclass

from thinbox.isolation import view_rules
from thinbox.isolation.verdict import Verdict


class PageKind(enum.StrEnum):
    """What a physical page is, as the wording has it."""

    STATIC = "the kernel's own"
    UNKNOWN = "an uncounted page, or one the kernel does not know"
    FREE = "a free page"
    MEMORY = "user memory"
    FILE = "page cache"
    SLAB = "kernel objects"
    TABLE = "a page table"
    KERNEL = "kernel memory (stack, pipe or socket buffer)"


@dataclass(frozen=True, slots=True)
class PageFacts:
    """One page: what it is, and to whom it is charged.

    `owners` are the tenants any of it is charged to (None among them: also to nobody); `here` is the owner of the
    object at the address that was touched. `detail` is a slab's cache; `is_linked` if the kernel chains the cache's
    objects across tenants, though its name may not say so. Of page cache: `is_held` if the running task
    has the file open or mapped; `is_public` if it lies in a file system mounted in the task's mount namespace, and
    everybody may read it; `is_writable` (of a write only) if the task has it open for writing, or its ids and the
    file's mode let it.
    """

    kind: PageKind
    owners: frozenset[str | None] = frozenset({None})
    here: str | None = None
    detail: str = ""
    is_held: bool = False
    is_public: bool = False
    is_linked: bool = False
    is_writable: bool = False


@dataclass(frozen=True, slots=True)
class ViewVerdict:
    """`verdict`, the tenant it protects (None: no tenant's), and whether the grant is for one block of code only.

    `is_while_inside`: or for as many blocks as the function that touched the page runs on, it being the reason.
    """

    verdict: Verdict
    owner: str | None = None
    is_one_block: bool = False
    is_while_inside: bool = False


LINKING = (
    # Run queue and timers: red-black trees and lists whose nodes lie in tasks and on the stacks of sleepers.
    "rb_insert_color",
    "rb_erase",
    "rb_next",
    "timerqueue_add",
    "timerqueue_del",
    "timerqueue_iterate_next",
    "timerqueue_linked_add",  # 7.1
    "rb_erase_linked",  # 7.1
    "__hrtimer_next_event_base",
    "__hrtimer_get_next_event",
    "__remove_hrtimer",
    "__hrtimer_start_range_ns",  # 7.1: what orders the timers is inline
    "hrtimer_bases_first",
    "hrtimer_bases_next_event_without",
    "enqueue_timer",
    "detach_if_pending",
    "__run_timers",
    "__list_add_valid",
    "__list_del_entry_valid",
    "__list_add_valid_or_report",  # 6.6
    "__list_del_entry_valid_or_report",
    # Mappings of a file, and of shared anonymous memory: one interval tree for all address spaces.
    "vma_interval_tree_insert",
    "vma_interval_tree_insert_after",
    "vma_interval_tree_remove",
    "vma_interval_tree_subtree_search",
    "vma_interval_tree_iter_first",
    "vma_interval_tree_iter_next",
    "vma_interval_tree_augment_rotate",
    "anon_vma_interval_tree_insert",
    "anon_vma_interval_tree_remove",
    "anon_vma_interval_tree_iter_first",
    "anon_vma_interval_tree_iter_next",
    "__anon_vma_interval_tree_subtree_search",
    "__anon_vma_interval_tree_augment_rotate",
    "mapping_rmap_tree_insert",  # 7.2, as the ones above
    "mapping_rmap_tree_insert_after",
    "mapping_rmap_tree_remove",
    "mapping_rmap_tree_iter_first",
    "mapping_rmap_tree_iter_next",
    "__mapping_rmap_tree_augment_rotate",
    "__mapping_rmap_tree_subtree_search",
    "anon_rmap_tree_insert",
    "anon_rmap_tree_remove",
    "anon_rmap_tree_iter_first",
    "anon_rmap_tree_iter_next",
    "__anon_rmap_tree_augment_rotate",
    "__anon_rmap_tree_subtree_search",
    "__rb_insert_augmented",
    "__rb_erase_color",
    # Counters of each CPU: one list for all, which a CPU that goes is taken out of.
    "__percpu_counter_init",
    "percpu_counter_destroy",
    "__percpu_counter_init_many",  # 6.6
    "percpu_counter_destroy_many",
    # Freed objects that wait for a grace period: one list for all.
    "rcu_segcblist_pend_cbs",
    "rcu_segcblist_enqueue",
    "rcu_cblist_enqueue",
    # `sync` looks for pages to write on every disk (fs/sync.c, mm/filemap.c).
    "xas_find_marked",
    # Devices (each network namespace has one): lists of all of a kind.
    "kobject_add_internal",
    "kobj_kset_leave",
    "klist_add_tail",
    "klist_add_head",
    "klist_release",
    "device_pm_add",
    "device_pm_remove",
    # Wait queues and locks: a waiter's entry lies on its own stack.
    "add_wait_queue",
    "add_wait_queue_exclusive",
    "add_wait_queue_priority",
    "remove_wait_queue",
    "prepare_to_wait",
    "prepare_to_wait_exclusive",
    "prepare_to_wait_event",
    "finish_wait",
    "__wake_up_common",
    "autoremove_wake_function",
    "default_wake_function",
    "pollwake",
    "ep_poll_callback",
    "woken_wake_function",
    "swake_up_locked",
    "wake_up_q",
    "wake_q_add",
    "wake_q_add_safe",
    "rwsem_mark_wake",
    "rwsem_wake",
    "rwsem_down_read_slowpath",
    "rwsem_down_write_slowpath",
    "mutex_unlock",
    "__mutex_unlock_slowpath",
    "__mutex_lock",
    "__mutex_add_waiter",
    "__mutex_remove_waiter",
    "rt_mutex_slowunlock",
    "up",
    "__up",
    "complete",
    "try_to_wake_up",
    "_raw_spin_lock",
    "_raw_spin_lock_irq",
    "_raw_spin_lock_irqsave",
    "_raw_spin_unlock",
    "_raw_spin_unlock_irq",
    "_raw_spin_unlock_irqrestore",
    # Futexes: 256 chains for each CPU; a waiter's entry lies on its own stack.
    "plist_add",
    "plist_del",
    "plist_requeue",
    "futex_wake",
    "futex_wake_mark",
    "futex_wake_op",
    "futex_requeue",
    "futex_top_waiter",
    "__futex_queue",
    "__futex_unqueue",
    # POSIX timers: one hash table; the cache is merged with that of open files, so it cannot be named below.
    "posix_timer_add",
    "posix_timer_by_id",
    "release_posix_timer",
    "do_timer_create",
    "__lock_timer",
    "lock_timer",  # 6.15, "posix-timers: Rework timer removal" and its series
    "posix_timer_add_at",
    "posix_timer_unhash_and_free",
    # A signal to another tenant's task, where it may be sent: AppArmor compares the labels that creds point to.
    "aa_get_task_label",
)
"""Functions that follow the kernel's own links from one tenant's object to the next one's."""

LINKED_CACHES = frozenset(
    {
        "task_struct",  # run queue, parent and child, waking: the scheduler itself
        "signal_cache",  # accounting at fork and exit, signals, ptrace: reached from any task
        "sighand_cache",  # its lock is taken by whoever signals or reaps
        "mm_struct",  # switched to and from, lazily borrowed by kernel threads
        "pid",  # hash chains of pids
        "cred_jar",  # compared at each permission check between tasks
        "dentry",  # one hash table of names for the whole kernel
        "mnt_cache",  # trees of mounts, propagated between namespaces
        "user_namespace",  # counted by whoever drops the last reference to a task's memory
        "kernfs_node_cache",  # trees of sysfs and cgroups
        "shmem_inode_cache",  # inodes: a list for each super block, one hash table for all
        "proc_inode_cache",
        "sock_inode_cache",
        "ext4_inode_cache",
        "buffer_head",  # blocks of all disks that were used last: one list for a CPU (fs/buffer.c, bh_lrus)
        "inode_cache",
    }
)
"""Caches whose objects the kernel chains across tenants. See docs/views.md for what that leaves."""


CLEARING = frozenset({"clear_page_erms", "clear_page_rep", "clear_page_orig", "__clear_pages_unrolled"})
"""The last since 7.0 (arch/x86/lib/clear_page_64.S). They fill a page with zeros before anyone may have it: then the
later pages of a large one look like nobody's."""


_COPY = re.compile(r"(\.(constprop|isra|part)\.\d+)+$")
"""What a compiler adds to the name of a copy it makes of a function (gcc, -fipa-cp, -fipa-sra, -fpartial-inlining)."""


def _grant(rule: str, reason: str) -> Verdict:
    return Verdict(granted=True, rule=rule, reason=reason)


def _granted(rule: str, reason: str) -> ViewVerdict:
    return ViewVerdict(_grant(rule, reason))


def _lent(rule: str, reason: str, owner: str | None = None) -> ViewVerdict:
    """For what a function is let do: as long as it runs."""
    return ViewVerdict(_grant(rule, reason), owner, is_one_block=True, is_while_inside=True)


def _refused(rule: str, reason: str, owner: str | None, function: str | None) -> ViewVerdict:
    where = f" (touched in {function})" if function else ""
    return ViewVerdict(Verdict(granted=False, rule=rule, reason=reason + where), owner)


def check_page(rule: int, own: str, facts: PageFacts, function: str | None, *, is_write: bool = False) -> ViewVerdict:
    """Judge a data access of tenant `own` by an instruction of kernel function `function` to the page of `facts`."""
    kind = facts.kind
    function = None if function is None else _COPY.sub("", function)
    others = sorted(owner for owner in facts.owners if owner not in (None, own))
    other = others[0] if others else None
    if kind is PageKind.STATIC:
        return _granted("V0", "the kernel's own static data")
    if kind is PageKind.FREE:
        return _refused("V4", "it belongs to nobody: a free page still holds what its last owner left", None, function)
    if kind is PageKind.UNKNOWN:
        if rule == view_rules.PERMISSIVE:
            return _granted("V5", "nobody's, as far as can be told")
        if function in CLEARING:
            return _lent("V5", "nobody's yet: it is being cleared")
        if facts.here == own and function == "pgd_alloc":
            return _lent("V5", "the second page of a top-level table being made")
        return _refused("V5", f"it cannot be told whose it is: {kind.value}", None, function)
    if kind is PageKind.FILE:
        found = _check_file(rule, own, facts, other, function)
        if is_write and found.verdict.granted and own not in facts.owners and not facts.is_writable:
            return _refused("V8", "a write to a file that the task may not write", other, function)
        return found
    if kind is PageKind.SLAB:
        return _check_slab(rule, own, facts, other, function)
    if other is not None:
        if kind is not PageKind.MEMORY and function in LINKING:
            return _lent("V6", "a link of the kernel's own", other)
        return _refused("V1", f"it belongs to tenant {other}: {kind.value}", other, function)
    if kind is PageKind.MEMORY and facts.owners == {None} and rule == view_rules.STRICT:
        return _refused("V5", f"it is not tenant {own}'s: {kind.value} of no tenant", None, function)
    return _granted("V0", "the tenant's own, or the kernel's")


def _check_file(rule: int, own: str, facts: PageFacts, other: str | None, function: str | None) -> ViewVerdict:
    if own in facts.owners:
        return _granted("V0", "the tenant's own")
    if facts.is_held:
        return _granted("V3", "a file the task has open, or mapped")
    if other is not None:
        if rule == view_rules.PERMISSIVE and facts.is_public:
            return _granted("V3", "a file everybody may read")
        return _refused("V3", f"it belongs to tenant {other}: {facts.kind.value}", other, function)
    if rule == view_rules.STRICT and not facts.is_public:
        return _refused("V3", f"it is not tenant {own}'s: {facts.kind.value} of a file not for all", None, function)
    return _granted("V3", "no tenant's file")


def _check_slab(rule: int, own: str, facts: PageFacts, other: str | None, function: str | None) -> ViewVerdict:
    if other is None:
        return _granted("V0", "the tenant's own objects, or the kernel's")
    if facts.here in (None, own):
        # The page holds objects of others too: strict shows it to the one block of code that touches this one.
        reason = "the object is the tenant's own, or the kernel's"
        return ViewVerdict(_grant("V2", reason), other, is_one_block=rule == view_rules.STRICT)
    if facts.is_linked or facts.detail in LINKED_CACHES:
        reason = f"the kernel links objects of {facts.detail} across tenants"
        return ViewVerdict(_grant("V6", reason), other, is_one_block=rule == view_rules.STRICT)
    if function in LINKING:
        return _lent("V6", "a link of the kernel's own", other)
    return _refused("V2", f"it belongs to tenant {facts.here}: {kind_name(facts)}", facts.here, function)


def check_mapping(rule: int, own: str, facts: PageFacts, *, is_write: bool = False) -> ViewVerdict:
    """Judge a user mapping of tenant `own` of the page of `facts`, found in its page table when a call ends (rule V7),
    or by an access (`is_write`: a store) as it happens (rule W3).

    Preconditions: it is none of the kernel's own pages that every process may map (zeros, vDSO).
    """
    kind = facts.kind
    if is_write and kind is PageKind.FILE and not facts.is_writable:
        return _refused("V8", "a write to a file that the task may not write", None, None)
    if kind is PageKind.STATIC:
        return _refused("V7", f"a user mapping of {kind.value} data", None, None)
    if kind in (PageKind.SLAB, PageKind.TABLE, PageKind.FREE):
        others = sorted(owner for owner in facts.owners if owner not in (None, own))
        return _refused("V7", f"a user mapping of {kind.value}", others[0] if others else None, None)
    if kind is PageKind.MEMORY and facts.owners <= {None, own}:
        # Of no tenant: inherited from the process that started the tenant's first one.
        return _granted("V7", "memory of its own, or no tenant's")
    found = check_page(rule, own, facts, None)
    if found.verdict.granted:
        return found
    return _refused("V7", f"a user mapping of a page that is not its own: {found.verdict.reason}", found.owner, None)


PLAIN_MAPPING = _granted("V7", "memory of its own, or for all to map")
SHARED_WRITABLE = _refused("V7", "a writable user mapping of a page of the kernel's that all may read", None, None)
TABLE_MAPPING = _refused("V7", f"a user mapping of {PageKind.TABLE.value}", None, None)
FORGED_KERNEL_HALF = _refused("V7", "an entry of a page table's kernel half that is not the kernel's own", None, None)
FORGED_SPACE = _refused("V7", "the address space that the task has is not the one that is in use", None, None)
TOO_MANY_TABLES = _refused("V7", "more page tables changed in one call than are looked at", None, None)


def check_lower_table(own: str, facts: PageFacts, *, is_typed: bool) -> ViewVerdict:
    """Judge an entry of a user page table that names the next lower one; `is_typed`: the kernel marks those of that
    level as page tables (the upper ones it does not)."""
    is_table = facts.kind is PageKind.TABLE if is_typed else facts.kind in (PageKind.TABLE, PageKind.KERNEL)
    if is_table and facts.owners <= {None, own}:
        return _granted("V7", "a page table of its own")
    return _refused(
        "V7", f"an entry that names as the next page table what is none of its own: {facts.kind.value}", None, None
    )


def kind_name(facts: PageFacts) -> str:
    """Return the wording of a slab: its cache, if that is known."""
    return f"an object of {facts.detail}" if facts.detail else facts.kind.value
