"""Policy `guard`: ids and helpers' paths are the same when a call ends, unless that call may change them; ids do not
change between calls; and the kernel starts no program but those it has for that.

Why it exists: a write to data cannot be judged by its page, which holds many objects that calls write for good
reasons. These few can be compared. What Linux Kernel Runtime Guard does now and then, this does at each call's ends.

Allows every access. Cannot see: what was changed and put back, what was done with it before the end, and any other
object. A call that never ends is never compared. See docs/policies/guard.md.
"""

from dataclasses import dataclass

from thinbox.isolation.policies.sci import DATA
from thinbox.isolation.policy import CallView
from thinbox.isolation.verdict import Access, AccessKind, Verdict

CODE = Verdict(granted=True, rule="G0", reason="code is not judged", cacheable=True)
NEW_IDENTITY = Verdict(granted=False, rule="G1", reason="the task's ids or capabilities changed, in a call that cannot")
NEW_HELPER = Verdict(granted=False, rule="G2", reason="the path of a program that the kernel starts changed")
NEW_BETWEEN = Verdict(granted=False, rule="G3", reason="the task's ids or capabilities changed outside of its calls")
FOREIGN_IDENTITY = Verdict(granted=False, rule="G5", reason="the call changed another task's ids or capabilities")
NEW_AT_BIRTH = Verdict(granted=False, rule="G6", reason="a new task has other ids or capabilities than its parent")

CHANGES_IDENTITY = frozenset(
    (
        *("setuid", "setgid", "setreuid", "setregid", "setresuid", "setresgid", "setfsuid", "setfsgid"),
        *("capset", "prctl", "execve", "execveat", "unshare", "setns", "keyctl"),
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
_ALL_IDS_BYTES = 32
"""uid to fsgid: eight ids."""
"""struct cred: uid, gid, suid, sgid, euid; 4 bytes each (include/linux/cred.h)."""


@dataclass(frozen=True, slots=True)
class ProtectedObject:
    """One object: where it is, and what it holds. `is_identity`: the task's ids and capabilities; else a path."""

    vaddr: int
    content: bytes
    is_identity: bool

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
            if old.content == new.content:
                continue
            may = name in CHANGES_IDENTITY if new.is_identity else name in WRITES and before[0].is_root
            if not may:
                return NEW_IDENTITY if new.is_identity else NEW_HELPER, new.vaddr
        return None

    def check_between(self, before: bytes, now: ProtectedObject) -> tuple[Verdict, int] | None:
        """Compare a task's identity as a call begins with what it was when the task's last one ended."""
        return None if now.content == before else (NEW_BETWEEN, now.vaddr)

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


def is_born_with(parents: ProtectedObject, now: ProtectedObject, *, in_new_namespace: bool) -> bool:
    """Tell whether a new task's ids are as `copy_creds` makes them (kernel/cred.c): its parent's; in a user namespace
    of its own (`create_user_ns`), its parent's with other capabilities."""
    if in_new_namespace:
        return now.content[:_ALL_IDS_BYTES] == parents.content[:_ALL_IDS_BYTES] and bool(now.content)
    return now.content == parents.content
