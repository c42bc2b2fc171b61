"""What a user's program looks like to a type checker: mypy --strict reads this, as an installed package shows it."""

from collections.abc import Callable
from pathlib import Path

import thinbox


class Mine(thinbox.Policy):
    """Code only at a function's start."""

    def check_access(self, access: thinbox.Access, call: thinbox.CallView) -> thinbox.Verdict:
        if access.kind is not thinbox.AccessKind.FETCH or (access.symbol is not None and access.offset == 0):
            return self.grant("a start, or data", cacheable=True)
        return self.refuse(f"{call.name}: not a start")


def look(guest: thinbox.Guest) -> thinbox.Result:
    with guest.session(["id"], policy=Mine(), stdin=b"in", env={"A": "b"}) as s:
        remove: Callable[[], None] = s.on("__x64_sys_getuid", lambda: print(s.regs.rdi, s.current.comm))
        data: bytes = s.memory.read(s.symbols["init_cred"], 64)
        uid: int = s.struct("cred", "init_cred").number("uid.val")
        remove()
    print(len(data), uid)
    return s.result


def main() -> int:
    guest = thinbox.boot(kaslr=True, kaslr_seed=3)
    result = guest.run(["id"], policy="live", rootfs=Path("/root"), on_violation="undo").check()
    print(result.exit_code + 1, result.stdout.decode(), result.text.upper(), [call.name for call in result.calls])
    print([kill.sentence() for kill in result.kills], result.totals["calls"], look(guest).exit_code)
    for name, each in guest.run_tenants([thinbox.Tenant("a", ["id"], memory_bytes=1 << 26)]).items():
        print(name.upper(), each.exit_code + 1)
    print(guest.audit("getpid", policy="sci").check().totals, len(guest.audit("getpid").entries))
    print(guest.attack("rop-commit-creds", policy=("none", "live")).outcome("rop-commit-creds", "live"))
    plan: thinbox.Plan = thinbox.make_plan([result], "sample")
    Path("page.html").write_bytes(thinbox.render_report([result], "A run"))
    Path("seccomp.json").write_bytes(thinbox.export(plan, "oci"))
    return guest.run(["id"], plan=plan).exit_code
