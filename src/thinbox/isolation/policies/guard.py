"""Policy `guard`: ids and helpers' paths are the same when a call ends, unless that call may change them; ids do not
change between calls; and the kernel starts no program but those it has for that.

Why it exists: a write to data cannot be judged by its page, which holds many objects that calls write for good
reasons. These few can be compared. What Linux Kernel Runtime Guard does now and then, this does at each call's ends.

Allows every access. Cannot see: what was changed and put back, what was done with it before the end, and any other
object. A call that never ends is never compared. See docs/policies/guard.md.
"""

import struct
from dataclasses import dataclass

from thinbox.isolation.policies.sci import DATA
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

CODE = Verdict(granted=True, rule="G0", reason="code is not judged", cacheable=True)
NEW_IDENTITY = Verdict(granted=False, rule="G1", reason="the task's ids or capabilities changed, in a call that cannot")
TOO_MUCH = Verdict(
    granted=False, rule="G7", reason="the task's ids or capabilities changed to what this call cannot give it"
)
NEW_HELPER = Verdict(granted=False, rule="G2", reason="the path of a program that the kernel starts changed")
NEW_BETWEEN = Verdict(granted=False, rule="G3", reason="the task's ids or capabilities changed outside of its calls")
FORGED_MAP = Verdict(
    granted=False, rule="G8", reason="the ids that a user namespace maps changed, in a call that cannot make such a map"
)
FOREIGN_IDENTITY = Verdict(granted=False, rule="G5", reason="the call changed another task's ids or capabilities")
NEW_AT_BIRTH = Verdict(granted=False, rule="G6", reason="a new task has other ids or capabilities than its parent")

CHANGES_IDENTITY = frozenset(
    (
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"),
        *("capset", "prctl", "execve", "execveat", "unshare", "setns", "keyctl", "setgroups"),
    )
)
"""kernel/sys.c, kernel/capability.c, security/commoncap.c, fs/exec.c, kernel/user_namespace.c, security/keys/keyctl.c:
the callers of commit_creds. 32-bit calls are by number, and not let off."""


WRITES = frozenset(("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendfile", "splice"))
"""The calls by which root sets the paths, in /proc/sys (kernel/sysctl.c)."""
PROGRAMS = frozenset(
    (
        *(b"/sbin/request-key", b"/sbin/bridge-stp", b"/sbin/nfs_cache_getent", b"/sbin/nfsdcltrack"),
        *(b"/sbin/nfsd-recall-failed", b"/sbin/drbdadm", b"/sbin/ocfs2_hb_ctl", b"/sbin/v86d", b"bpfilter_umh"),
    )
)
"""What call_usermodehelper starts, but for the guarded paths: security/keys/request_key.c, net/bridge/br_private_stp.h,
fs/nfs/cache_lib.c, fs/nfsd/nfs4recover.c, fs/nfsd/nfs4layouts.c, drivers/block/drbd/drbd_main.c, fs/ocfs2/stackglue.c,
drivers/video/fbdev/uvesafb.c, net/bpfilter/bpfilter_kern.c (the name of a driver)."""
_EUID_AT, _ID_BYTES = 16, 4
"""struct cred: uid, gid, suid, sgid, euid; 4 bytes each (include/linux/cred.h)."""
_ALL_IDS_BYTES = 32
"""uid to fsgid: eight ids."""
POINTER_BYTES = 8
_CAPABILITY_BYTES = 8
_KINDS = ("inheritable", "permitted", "effective", "bounding", "ambient")
_CAP_SETGID, _CAP_SETUID, _CAP_SYS_ADMIN = 6, 7, 21
"""include/uapi/linux/capability.h."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What is known of a user namespace: the ids (the first one's numbers) that it maps; `line`, for it and each above
    it but the first, the namespace that it lies in and its owner's uid, empty if it is no namespace; and whether it was
    made in the call that runs."""

    users: tuple[range, ...] = ()
    groups: tuple[range, ...] = ()
    line: tuple[tuple[int, int], ...] = ()
    is_made_now: bool = False


@dataclass(frozen=True, slots=True)
class ProtectedObject:
    """One object: where it is, and what it holds. `is_identity`: the task's ids and capabilities; else a path."""

    vaddr: int
    content: bytes
    is_identity: bool
    groups: bytes = b""
    """Of an identity: how many groups its `group_info` has, and which (`ngroups`, `gid`): 4 bytes each."""
    first_namespace: int = 0
    """Of an identity: the address of the first user namespace."""
    standing: Standing = Standing()
    """Of an identity in another one: what is known of that."""

    def is_as(self, other: "ProtectedObject") -> bool:
        """Tell whether two looks at an object found the same."""
        return self.content == other.content and self.groups == other.groups

    @property
    def is_root(self) -> bool:
        """Of an identity: whether the effective uid is the first namespace's root."""
        return self.content[_EUID_AT : _EUID_AT + _ID_BYTES] == bytes(_ID_BYTES)


class Guard:
    """All accesses; compares at the end."""

    name = "guard"
    grants_all_data = True
    guards_end = True

    def check_access(self, access: Access, _call: CallView) -> Verdict:
        """Grant."""
        return CODE if access.kind is AccessKind.FETCH else DATA

    def check_end(
        self, name: str, before: tuple[ProtectedObject, ...], after: tuple[ProtectedObject, ...]
    ) -> tuple[Verdict, int] | None:
        """Compare what was guarded when the call `name` began and now; return the refusal and the object's address."""
        for old, new in zip(before, after, strict=True):
            if old.is_as(new):
                continue
            if not new.is_identity:
                if name in WRITES and before[0].is_root:
                    continue
                return NEW_HELPER, new.vaddr
            if name not in CHANGES_IDENTITY or is_list_changed(old, new):
                return NEW_IDENTITY, new.vaddr
            if not may_become(name, old, new):
                return TOO_MUCH, new.vaddr
        return None

    def check_between(self, before: ProtectedObject, now: ProtectedObject) -> tuple[Verdict, int] | None:
        """Compare a task's identity as a call begins with what it was when the task's last one ended."""
        return None if now.is_as(before) else (NEW_BETWEEN, now.vaddr)

    def check_program(self, path: bytes, before: tuple[ProtectedObject, ...], place: int) -> tuple[Verdict, int] | None:
        """Judge a program that the kernel is about to start as root, its path at `place`; `before` is what was guarded
        when the call began. A path may go on with arguments, and `core_pattern` begins with the sign of a pipe."""
        known = {guarded.content.lstrip(b"|").split(b" ")[0] for guarded in before if not guarded.is_identity}
        if path in PROGRAMS or (path and path in known):
            return None
        shown = path.decode("ascii", "replace")
        return Verdict(
            granted=False, rule="G4", reason=f"the kernel was to start {shown!r}, which it never does"
        ), place


@dataclass(frozen=True, slots=True)
class _Identity:
    """The bytes of an identity, taken apart."""

    users: tuple[int, ...]
    groups: tuple[int, ...]
    capabilities: dict[str, int]
    namespace: int
    more_groups: int

    @classmethod
    def of(cls, content: bytes) -> "_Identity":
        ids = struct.unpack_from("<8I", content)
        end = len(content) - 2 * POINTER_BYTES
        words = struct.unpack_from(f"<{len(_KINDS)}Q", content, end - len(_KINDS) * _CAPABILITY_BYTES)
        namespace, more_groups = struct.unpack_from("<2Q", content, end)
        return cls(ids[0::2], ids[1::2], dict(zip(_KINDS, words, strict=True)), namespace, more_groups)

    def may(self, capability: int) -> bool:
        return bool(self.capabilities["effective"] >> capability & 1)

    def can(self, capability: int, line: tuple[tuple[int, int], ...]) -> bool:
        """Tell whether it has a capability in a namespace below its own, by the `Standing.line` of that: by having it
        in its own, or as the owner of what lies in its own (security/commoncap.c, cap_capable)."""
        return any(
            above == self.namespace and (self.may(capability) or owner == self.users[2]) for above, owner in line
        )


_IDENTITY_BYTES = _ALL_IDS_BYTES + 4 + len(_KINDS) * _CAPABILITY_BYTES + 2 * POINTER_BYTES
Ids = tuple[int, ...]
_SETS_IDS = frozenset(
    ("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid", "setgroups")
)
_NEW_PROGRAM = frozenset(("execve", "execveat"))


def may_become(name: str, old: ProtectedObject, new: ProtectedObject) -> bool:
    """Tell whether call `name`, which may change ids, can have changed these so.

    Without CAP_SETUID (CAP_SETGID) ids are exchanged among themselves (kernel/sys.c); permitted capabilities grow by a
    new program and by a user namespace that is not the first one only (security/commoncap.c, kernel/user_namespace.c).
    In a user namespace of its own a task gets ids that the namespace maps, and no others. Which file a new program came
    from is not looked at. What a namespace maps, `enforcement.id_maps` says.
    """
    if not len(old.content) == len(new.content) >= _IDENTITY_BYTES:
        return len(old.content) == len(new.content)
    was, now = _Identity.of(old.content), _Identity.of(new.content)
    is_elsewhere = now.namespace != was.namespace
    if is_elsewhere and not _may_enter(name, was, new):
        return False
    if name in _NEW_PROGRAM:
        # The real ids are those of before; the others may be the file's.
        return now.users[0] == was.users[0] and now.groups[0] == was.groups[0] and now.more_groups == was.more_groups
    if not is_elsewhere and now.capabilities["permitted"] & ~was.capabilities["permitted"]:
        return False
    if now.capabilities["effective"] & ~now.capabilities["permitted"]:
        return False
    if name not in _SETS_IDS:
        return (now.users, now.groups, now.more_groups) == (was.users, was.groups, was.more_groups)

    def can_have(now_ids: Ids, was_ids: Ids, capability: int, mapped: tuple[range, ...]) -> bool:
        gained = set(now_ids) - set(was_ids)
        if not gained or not was.may(capability):
            return not gained
        return was.namespace == old.first_namespace or all(any(one in ids for ids in mapped) for one in gained)

    return (
        can_have(now.users, was.users, _CAP_SETUID, old.standing.users)
        and can_have(now.groups, was.groups, _CAP_SETGID, old.standing.groups)
        and (now.more_groups == was.more_groups or (name == "setgroups" and was.may(_CAP_SETGID)))
    )


def is_list_changed(old: ProtectedObject, new: ProtectedObject) -> bool:
    """Tell whether a list of groups changed in its place. None does: `setgroups` makes a new one (kernel/groups.c)."""
    is_same = old.content[-POINTER_BYTES:] == new.content[-POINTER_BYTES:]
    return is_same and old.groups != new.groups


def namespace_of(identity: ProtectedObject) -> int:
    """Return the user namespace of an identity (address); 0 of one that cannot be read."""
    return _Identity.of(identity.content).namespace if len(identity.content) >= _IDENTITY_BYTES else 0


def may_map(
    writer: ProtectedObject,
    is_users: bool,
    line: tuple[tuple[int, int], ...],
    parents: tuple[range, ...] | None,
    wanted: tuple[range, ...],
) -> bool:
    """Tell whether a task with the identity `writer` may give a user namespace the map `wanted`.

    `line` is the namespace's (`Standing.line`); `parents` is what the one directly above maps (None: it is the first,
    which maps all). Without CAP_SETUID (CAP_SETGID) in that one a task maps its own id and no other
    (kernel/user_namespace.c, new_idmap_permitted).
    """
    if len(writer.content) < _IDENTITY_BYTES:
        return False
    own = _Identity.of(writer.content)
    effective = (own.users if is_users else own.groups)[2]
    if len(wanted) == 1 and len(wanted[0]) == 1 and wanted[0][0] == effective:
        return True
    if parents is not None and not all(any(one[0] in ids and one[-1] in ids for ids in parents) for one in wanted):
        return False
    capability = _CAP_SETUID if is_users else _CAP_SETGID
    if line[0][0] == own.namespace:
        return own.may(capability)
    return own.can(capability, line[1:])


def _may_enter(name: str, was: _Identity, new: ProtectedObject) -> bool:
    """Tell whether a task may come into another user namespace: one made in this very call, or (`setns`) one that there
    is, with CAP_SYS_ADMIN in it (kernel/user_namespace.c, userns_install). The first has no line; nobody enters it."""
    if name == "unshare":
        return new.standing.is_made_now and new.standing.line[0][0] == was.namespace
    return name == "setns" and was.can(_CAP_SYS_ADMIN, new.standing.line)


def is_born_with(parents: ProtectedObject, now: ProtectedObject, *, in_new_namespace: bool) -> bool:
    """Tell whether a new task's ids are as `copy_creds` makes them (kernel/cred.c): its parent's; in a user namespace
    of its own (`create_user_ns`), its parent's with other capabilities."""
    if in_new_namespace:
        if len(now.content) >= _IDENTITY_BYTES and not (
            now.standing.is_made_now and now.standing.line[0][0] == namespace_of(parents)
        ):
            return False
        has_ids = now.content[:_ALL_IDS_BYTES] == parents.content[:_ALL_IDS_BYTES] and bool(now.content)
        return has_ids and not is_list_changed(parents, now)
    return now.is_as(parents)
