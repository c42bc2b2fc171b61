"""The 8254 timer: channel 0 interrupts, channel 2 is the speaker gate used for calibration.

Time is virtual nanoseconds handed in by the caller; counts are derived from it, nothing ticks.
Source: Intel 8254 data sheet; ports 0x40 to 0x43 and 0x61.
"""

from typing import Any

HZ = 1_193_182
_NS = 1_000_000_000
_PERIODIC_MODES = (2, 3)
_SPEAKER_GATE = 0x01
_CHANNEL2_OUT = 0x20
_REFRESH_TOGGLE = 0x10


class _Channel:
    def __init__(self) -> None:
        self.mode = 3
        self.access = 3
        self.reload = 0x10000
        self.started_ns = 0
        self.low_byte: int | None = None
        self.read_high = False
        self.latched: int | None = None

    def count(self, now_ns: int) -> int:
        """Return what the counter shows now."""
        elapsed = (now_ns - self.started_ns) * HZ // _NS
        if self.mode in _PERIODIC_MODES:
            return self.reload - elapsed % self.reload
        return (self.reload - elapsed) & 0xFFFF

    def expired(self, now_ns: int) -> bool:
        return (now_ns - self.started_ns) * HZ >= self.reload * _NS

    def load(self, value: int, now_ns: int) -> bool:
        """Take one byte of a new count; True when the count is complete and the channel starts."""
        if self.access == 3 and self.low_byte is None:
            self.low_byte = value
            return False
        if self.access == 3:
            value, self.low_byte = (self.low_byte or 0) | value << 8, None
        elif self.access == 2:
            value <<= 8
        self.reload = value or 0x10000
        self.started_ns = now_ns
        return True

    def read_byte(self, now_ns: int) -> int:
        value = self.count(now_ns) if self.latched is None else self.latched
        if self.access == 2 or self.read_high:
            self.read_high, self.latched = False, None
            return value >> 8 & 0xFF
        if self.access == 3:
            self.read_high = True
        else:
            self.latched = None
        return value & 0xFF


class Pit:
    """Channels 0 to 2; `due_ns` is when channel 0 next interrupts, None if it is not armed."""

    PORTS = (0x40, 0x41, 0x42, 0x43, 0x61)

    def __init__(self) -> None:
        self._channels = (_Channel(), _Channel(), _Channel())
        self.due_ns: int | None = None
        self._port61 = 0
        self._refresh = False

    def expire(self, now_ns: int) -> bool:
        """Tell whether channel 0 fired by `now_ns`, and arm it again if it is periodic."""
        if self.due_ns is None or now_ns < self.due_ns:
            return False
        channel = self._channels[0]
        if channel.mode in _PERIODIC_MODES:
            period = channel.reload * _NS // HZ
            self.due_ns += period * ((now_ns - self.due_ns) // period + 1)
        else:
            self.due_ns = None
        return True

    def write(self, port: int, value: int, now_ns: int) -> None:
        """`out` to one of `PORTS`."""
        if port == 0x61:
            if value & _SPEAKER_GATE and not self._port61 & _SPEAKER_GATE:
                self._channels[2].started_ns = now_ns
            self._port61 = value & 3
        elif port == 0x43:
            self._command(value, now_ns)
        elif self._channels[port - 0x40].load(value, now_ns) and port == 0x40:
            channel = self._channels[0]
            self.due_ns = now_ns + channel.reload * _NS // HZ

    def _command(self, value: int, now_ns: int) -> None:
        number = value >> 6
        if number == 3:
            return
        channel = self._channels[number]
        if value >> 4 & 3 == 0:
            # A second latch before the first is read changes nothing (8254 data sheet, "Counter Latch Command").
            channel.latched = channel.count(now_ns) if channel.latched is None else channel.latched
            return
        channel.access, channel.mode = value >> 4 & 3, (value >> 1 & 7) % 6 if value >> 1 & 7 < 6 else value >> 1 & 3
        channel.low_byte, channel.read_high, channel.latched = None, False, None
        if number == 0:
            self.due_ns = None

    def read(self, port: int, now_ns: int) -> int:
        """`in` from one of `PORTS`."""
        if port == 0x61:
            self._refresh = not self._refresh
            out = _CHANNEL2_OUT if self._channels[2].expired(now_ns) else 0
            return self._port61 | out | (_REFRESH_TOGGLE if self._refresh else 0)
        if port == 0x43:
            return 0
        return self._channels[port - 0x40].read_byte(now_ns)

    def save(self) -> dict[str, Any]:
        """Return the state as plain values."""
        channels = [dict(vars(channel)) for channel in self._channels]
        return {"channels": channels, "due_ns": self.due_ns, "port61": self._port61, "refresh": self._refresh}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `save` returned."""
        for channel, values in zip(self._channels, state["channels"], strict=True):
            vars(channel).update(values)
        self.due_ns, self._port61, self._refresh = state["due_ns"], state["port61"], state["refresh"]
