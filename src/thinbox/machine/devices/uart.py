"""A 16550A UART: output to a callback, input from a queue (National PC16550D data sheet).

Transmission takes no time: the holding register is always empty again at once.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from thinbox.machine.devices.pic import Pic

IER_RX, IER_TX = 1, 2
LCR_DLAB = 0x80
MCR_LOOP, MCR_OUT2 = 0x10, 0x08
LINE_STATUS = 5
"""Register: what a console polls before each byte."""
LSR_DATA, LSR_IDLE = 0x01, 0x60
IIR_NONE, IIR_TX, IIR_RX, IIR_FIFO = 0x01, 0x02, 0x04, 0xC0
MSR_CONNECTED = 0xB0
_REGISTERS = ("_ier", "_lcr", "_mcr", "_scratch", "_fcr", "_divisor", "_tx_pending")


class Uart:
    """The UART at `port` on interrupt `line`; `output` gets each byte sent."""

    def __init__(self, port: int, line: int, pic: Pic, output: Callable[[int], None]) -> None:
        self.port, self._line, self._pic, self.output = port, line, pic, output
        self.input: deque[int] = deque()
        self._ier = self._lcr = self._mcr = self._scratch = self._fcr = 0
        self._divisor = [1, 0]
        self._tx_pending = False

    def receive(self, data: bytes) -> None:
        """Put bytes on the line to the guest."""
        self.input.extend(data)
        self._update()

    def _update(self) -> None:
        cause = (self._ier & IER_RX and self.input) or (self._ier & IER_TX and self._tx_pending)
        if cause and self._mcr & MCR_OUT2:
            self._pic.raise_line(self._line)
        else:
            self._pic.lower_line(self._line)

    def write(self, port: int, value: int) -> None:
        """`out` to one of its eight ports."""
        register = port - self.port
        if register <= 1 and self._lcr & LCR_DLAB:
            self._divisor[register] = value
            return
        if register == 0:
            if self._mcr & MCR_LOOP:
                self.input.append(value)
            else:
                self.output(value)
            self._tx_pending = True
        elif register == 1:
            if value & IER_TX and not self._ier & IER_TX:
                self._tx_pending = True
            self._ier = value & 0x0F
        elif register == 2:
            self._fcr = value
            if value & 2:
                self.input.clear()
        elif register == 3:
            self._lcr = value
        elif register == 4:
            self._mcr = value & 0x1F
        elif register == 7:
            self._scratch = value
        self._update()

    def read(self, port: int) -> int:
        """`in` from one of its eight ports."""
        register = port - self.port
        if register == LINE_STATUS:
            return LSR_IDLE | LSR_DATA if self.input else LSR_IDLE
        if register <= 1 and self._lcr & LCR_DLAB:
            return self._divisor[register]
        if register == 0:
            value = self.input.popleft() if self.input else 0
            self._update()
            return value
        if register == 2:
            return self._identify()
        if register == 6:
            return self._modem_status()
        return {1: self._ier, 3: self._lcr, 4: self._mcr, 7: self._scratch}[register]

    def _identify(self) -> int:
        fifo = IIR_FIFO if self._fcr & 1 else 0
        if self._ier & IER_RX and self.input:
            return IIR_RX | fifo
        if self._ier & IER_TX and self._tx_pending:
            self._tx_pending = False
            self._update()
            return IIR_TX | fifo
        return IIR_NONE | fifo

    def _modem_status(self) -> int:
        if not self._mcr & MCR_LOOP:
            return MSR_CONNECTED
        # In loop-back DTR, RTS, OUT1, OUT2 come back as DSR, CTS, RI, DCD.
        m = self._mcr
        return (m & 1) << 5 | (m & 2) << 3 | (m & 4) << 4 | (m & 8) << 4

    def save(self) -> dict[str, Any]:
        """Return the state as plain values."""
        values = {name: getattr(self, name) for name in _REGISTERS}
        return {**values, "input": list(self.input), "_divisor": list(self._divisor)}

    def restore(self, state: dict[str, Any]) -> None:
        """Load what `save` returned."""
        self.input = deque(state["input"])
        for name in _REGISTERS:
            setattr(self, name, state[name])
        self._divisor = list(state["_divisor"])
