"""The pair of 8259A interrupt controllers (Intel 8259A data sheet; ports 0x20 and 0xA0).

Edge triggered; no nesting of priorities beyond "lowest line first", which is all Linux uses.
"""

from typing import Any

ICW1_INIT = 0x10
OCW3 = 0x08
CASCADE_LINE = 2


class _Chip:
    def __init__(self) -> None:
        self.base = 0
        self.mask = 0xFF
        self.requested = 0
        self.in_service = 0
        self.step = 0
        self.read_in_service = False

    def write_command(self, value: int) -> None:
        if value & ICW1_INIT:
            self.step, self.mask, self.requested, self.in_service = 1, 0, 0, 0
        elif value & OCW3:
            if value & 2:
                self.read_in_service = bool(value & 1)
        elif value & 0x20:
            # End of interrupt: specific, or the highest priority in service.
            line = 1 << (value & 7) if value & 0x40 else self.in_service & -self.in_service
            self.in_service &= ~line

    def write_data(self, value: int) -> None:
        if self.step == 0:
            self.mask = value
            return
        if self.step == 1:
            self.base = value & 0xF8
        self.step = (self.step + 1) % 4

    def highest(self) -> int | None:
        """Return the line to serve next, if one is requested, unmasked and above all in service."""
        ready = self.requested & ~self.mask
        if not ready:
            return None
        line = (ready & -ready).bit_length() - 1
        lowest_serving = self.in_service & -self.in_service
        return line if not lowest_serving or 1 << line < lowest_serving else None


class Pic:
    """Sixteen interrupt lines; `raise_line` asks, `acknowledge` gives the vector to deliver."""

    PORTS = (0x20, 0x21, 0xA0, 0xA1)

    def __init__(self) -> None:
        self._chips = (_Chip(), _Chip())

    def raise_line(self, line: int) -> None:
        """Remember a rising edge on `line` (0 to 15)."""
        self._chips[line >> 3].requested |= 1 << (line & 7)

    def lower_line(self, line: int) -> None:
        """Take a request back that has not been served."""
        self._chips[line >> 3].requested &= ~(1 << (line & 7))

    @property
    def waiting(self) -> bool:
        """Whether an interrupt could be delivered now if the CPU accepts one."""
        return self._next() is not None

    def _next(self) -> tuple[_Chip, int] | None:
        master, slave = self._chips
        if slave.highest() is not None:
            master.requested |= 1 << CASCADE_LINE
        else:
            master.requested &= ~(1 << CASCADE_LINE)
        line = master.highest()
        if line is None:
            return None
        if line == CASCADE_LINE:
            behind = slave.highest()
            return None if behind is None else (slave, behind)
        return master, line

    def acknowledge(self) -> int | None:
        """Take the next interrupt into service; return its vector."""
        found = self._next()
        if found is None:
            return None
        chip, line = found
        chip.requested &= ~(1 << line)
        chip.in_service |= 1 << line
        if chip is self._chips[1]:
            self._chips[0].requested &= ~(1 << CASCADE_LINE)
            self._chips[0].in_service |= 1 << CASCADE_LINE
        return chip.base + line

    def read(self, port: int) -> int:
        """`in` from a port of the pair."""
        chip = self._chips[port >= 0xA0]
        if port & 1:
            return chip.mask
        return chip.in_service if chip.read_in_service else chip.requested

    def write(self, port: int, value: int) -> None:
        """`out` to a port of the pair."""
        chip = self._chips[port >= 0xA0]
        if port & 1:
            chip.write_data(value)
        else:
            chip.write_command(value)

    def save(self) -> list[dict[str, Any]]:
        """Return the state as plain values."""
        return [dict(vars(chip)) for chip in self._chips]

    def restore(self, state: list[dict[str, Any]]) -> None:
        """Load what `save` returned."""
        for chip, values in zip(self._chips, state, strict=True):
            vars(chip).update(values)
