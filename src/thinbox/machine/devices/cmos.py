"""The CMOS clock at ports 0x70 and 0x71, standing at a fixed date so that every run sees the same one."""

_BCD_DATE = {0: 0x00, 2: 0x00, 4: 0x00, 6: 0x05, 7: 0x01, 8: 0x01, 9: 0x26, 0x32: 0x20}
"""Second, minute, hour, weekday, day, month, year, century: 2026-01-01 00:00:00, a Thursday."""
_STATUS = {0x0A: 0x26, 0x0B: 0x02, 0x0C: 0x00, 0x0D: 0x80}
"""Divider running, no update in progress; 24 hours, BCD; battery good (Motorola MC146818 data sheet)."""


class Cmos:
    """Read-only clock; writes are swallowed."""

    PORTS = (0x70, 0x71)

    def __init__(self) -> None:
        self.index = 0

    def write(self, port: int, value: int) -> None:
        """`out`: select a register."""
        if port == 0x70:
            self.index = value & 0x7F

    def read(self, port: int) -> int:
        """`in`: the selected register."""
        if port == 0x70:
            return 0xFF
        return _BCD_DATE.get(self.index, _STATUS.get(self.index, 0))
