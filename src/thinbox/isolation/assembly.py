"""Hand-written assembly that is one function under several symbols.

Why it exists: rule 6 takes each symbol for a function. In arch/x86/lib/copy_user_64.S (until Linux 6.3)
`copy_user_generic_unrolled` ends by jumping to a local label in the middle of `copy_user_short_string`, a
few instructions further on in the same file. Where a page ends between the two, as in Debian's generic
6.1 kernel, every small copy to or from user space would be killed. The jump is as compiled, not chosen by
anybody; so the two count as one function, entered at the first one's start. A fetch at the second
symbol's own start stays what it is.

Rules of this file: an entry needs its reason from the kernel's source; addresses are never listed.
"""

ONE_FUNCTION = {"copy_user_short_string": "copy_user_generic_unrolled"}
"""Symbol -> the symbol whose function it is a part of (which must lie before it)."""
