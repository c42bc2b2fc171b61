"""Registers of a call lie in one order, whichever way it entered; its arguments differ."""

import pytest
from tests.support.fake_facts import fake_facts
from thinbox.errors import MissingFactError
from thinbox.kernel.pt_regs import find_regs

ORDER = "r15 r14 r13 r12 bp bx r11 r10 r9 r8 ax cx dx si di orig_ax ip cs flags sp ss".split()
MEMBERS = {f"pt_regs.{name}": 8 * number for number, name in enumerate(ORDER)}
FRAME = {"rt_sigframe.uc.uc_mcontext.ax": 152}


def test_arguments_lie_where_either_kind_of_call_has_them():
    found = find_regs(fake_facts(members=MEMBERS | FRAME, sizes={"pt_regs": 168}))
    assert [ORDER[place // 8] for place in found.native] == ["di", "si", "dx", "r10", "r8", "r9"]
    assert [ORDER[place // 8] for place in found.compat] == ["bx", "cx", "dx", "si", "di", "bp"]
    assert (found.ax_at, found.orig_ax_at, found.regs_bytes, found.frame_ax_at) == (80, 120, 168, 152)
    assert (found.ip_at, found.flags_at, found.sp_at) == (128, 144, 152)


def test_another_shape_is_refused():
    with pytest.raises(MissingFactError, match="rt_sigframe.uc.uc_mcontext.ax"):
        find_regs(fake_facts(members=MEMBERS, sizes={"pt_regs": 168}))


def test_on_real_kernels(real_facts):
    found = find_regs(real_facts)
    assert found.native == tuple(MEMBERS[f"pt_regs.{name}"] for name in ("di", "si", "dx", "r10", "r8", "r9"))
