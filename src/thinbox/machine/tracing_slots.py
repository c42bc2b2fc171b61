"""The words shared between Python and the compiled part of tracing: names only, for no Numba is imported here."""

CODE, DATA, MARK = 0, 1, 2
"""Low two bits of a trace word. Above them: a virtual page (signed), a frame, or a mark."""
STATE, GRANT, OPEN, CLOSE = 0, 1, 2, 3
"""Marks: word = payload << 4 | kind << 2 | MARK. STATE: root frame << 2 | on an SCI table << 1 | user;
GRANT: none; OPEN: the call's number, also when a sleeping call goes on; CLOSE: likewise, also when it sleeps."""

FILTER_SLOTS = 16
(
    TRACE_COUNT,
    TRACE_CAPACITY,
    TRACE_BUFFER,
    TRACE_CORE,
    TRACE_ON,
    TRACE_STATE,
    TRACE_GRANTS,
    TRACE_USER,
    TRACE_ROOT_MASK,
    TRACE_CODE_REFS,
    TRACE_DATA_REFS,
    TRACE_LOST,
    TRACE_INVLPG,
    TRACE_FLUSH_ALL,
    TRACE_FLUSH_LOCAL,
    TRACE_LAST_CODE,
    TRACE_CR3,
) = range(17)
CODE_FILTER = 17
DATA_FILTER = CODE_FILTER + FILTER_SLOTS
TRACE_WORDS = DATA_FILTER + FILTER_SLOTS
EMPTY = 1 << 62
