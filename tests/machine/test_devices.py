"""The devices answer as their data sheets say, as far as a PC kernel asks them."""

import json

import pytest

from thinbox.machine.devices.cmos import Cmos
from thinbox.machine.devices.pic import Pic
from thinbox.machine.devices.pit import HZ, Pit
from thinbox.machine.devices.uart import Uart

NS = 1_000_000_000
EOI = 0x20


def ready_pic() -> Pic:
    pic = Pic()
    for base, vector, third in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        for port, value in ((base, 0x11), (base + 1, vector), (base + 1, third), (base + 1, 1)):
            pic.write(port, value)
    return pic


# -- PIC -----------------------------------------------------------------------------------------------


def test_a_pic_nobody_initialised_delivers_nothing() -> None:
    pic = Pic()
    pic.raise_line(0)
    assert not pic.waiting
    assert pic.acknowledge() is None


def test_after_the_four_words_the_vectors_are_the_ones_given() -> None:
    for line in range(16):
        if line == 2:
            continue
        pic = ready_pic()
        pic.raise_line(line)
        assert pic.waiting
        assert pic.acknowledge() == 0x30 + line
        assert not pic.waiting


def test_initialising_again_forgets_masks_requests_and_service() -> None:
    pic = ready_pic()
    pic.write(0x21, 0xFF)
    pic.raise_line(1)
    pic.write(0x20, 0x11)
    for value in (0x60, 4, 1):
        pic.write(0x21, value)
    assert pic.read(0x21) == 0
    assert not pic.waiting
    pic.raise_line(1)
    assert pic.acknowledge() == 0x61


def test_a_masked_line_waits_until_it_is_unmasked() -> None:
    pic = ready_pic()
    pic.write(0x21, 1 << 4)
    pic.raise_line(4)
    assert not pic.waiting
    assert pic.read(0x21) == 1 << 4
    pic.write(0x21, 0)
    assert pic.acknowledge() == 0x34


def test_masking_the_cascade_masks_the_slave() -> None:
    pic = ready_pic()
    pic.raise_line(10)
    pic.write(0x21, 1 << 2)
    assert not pic.waiting
    pic.write(0x21, 0)
    assert pic.acknowledge() == 0x3A


def test_the_lowest_line_goes_first_and_the_slave_ranks_as_line_2() -> None:
    pic = ready_pic()
    for line in (7, 3, 15, 8, 1):
        pic.raise_line(line)
    order = []
    while (vector := pic.acknowledge()) is not None:
        order.append(vector - 0x30)
        pic.write(0xA0, EOI)
        pic.write(0x20, EOI)
    assert order == [1, 8, 15, 3, 7]


def test_a_line_in_service_holds_back_its_own_and_later_lines_only() -> None:
    pic = ready_pic()
    pic.raise_line(4)
    pic.acknowledge()
    for line in (4, 5):
        pic.raise_line(line)
        assert not pic.waiting
    pic.raise_line(1)
    assert pic.acknowledge() == 0x31
    pic.write(0x20, EOI)
    assert not pic.waiting, "line 4 is still in service"
    pic.write(0x20, EOI)
    assert pic.acknowledge() == 0x34


def test_a_specific_end_of_interrupt_ends_the_line_it_names() -> None:
    pic = ready_pic()
    for line in (4, 1):
        pic.raise_line(line)
        pic.acknowledge()
    pic.write(0x20, 0x60 | 4)
    pic.write(0x20, 0x0B)
    assert pic.read(0x20) == 1 << 1


def test_a_slave_interrupt_needs_an_end_on_both_chips() -> None:
    pic = ready_pic()
    pic.raise_line(9)
    pic.acknowledge()
    pic.raise_line(9)
    pic.write(0xA0, EOI)
    assert not pic.waiting, "the cascade is still in service"
    pic.write(0x20, EOI)
    assert pic.acknowledge() == 0x39


def test_requests_and_service_are_read_through_ocw3() -> None:
    pic = ready_pic()
    pic.raise_line(3)
    pic.acknowledge()
    pic.raise_line(5)
    assert pic.read(0x20) == 1 << 5
    pic.write(0x20, 0x0B)
    assert pic.read(0x20) == 1 << 3
    pic.write(0x20, 0x0A)
    assert pic.read(0x20) == 1 << 5


def test_a_lowered_line_is_not_delivered() -> None:
    pic = ready_pic()
    for line in (4, 12):
        pic.raise_line(line)
        assert pic.waiting
        pic.lower_line(line)
        assert not pic.waiting


def test_a_pic_saved_in_the_middle_goes_on_the_same() -> None:
    pic = ready_pic()
    pic.write(0xA1, 0x40)
    for line in (9, 4):
        pic.raise_line(line)
    pic.acknowledge()
    pic.write(0x20, 0x11)  # half an initialisation
    other = Pic()
    other.restore(json.loads(json.dumps(pic.save())))
    assert other.save() == pic.save()
    for chip in (pic, other):
        for value in (0x48, 4, 1):
            chip.write(0x21, value)
        chip.raise_line(1)
    assert other.acknowledge() == pic.acknowledge() == 0x49


# -- PIT -----------------------------------------------------------------------------------------------


def program(pit: Pit, channel: int, mode: int, count: int, now_ns: int = 0) -> None:
    pit.write(0x43, channel << 6 | 0x30 | mode << 1, now_ns)
    pit.write(0x40 + channel, count & 0xFF, now_ns)
    pit.write(0x40 + channel, count >> 8, now_ns)


def read_count(pit: Pit, channel: int, now_ns: int) -> int:
    return pit.read(0x40 + channel, now_ns) | pit.read(0x40 + channel, now_ns) << 8


def test_a_timer_nobody_programmed_never_fires() -> None:
    assert Pit().due_ns is None
    assert not Pit().expire(10**12)


def test_a_periodic_timer_fires_at_every_period() -> None:
    pit = Pit()
    program(pit, 0, 2, 11932, 500)
    period = 11932 * NS // HZ
    times = []
    for now in range(0, 105_000_000, 1000):
        if pit.expire(now):
            times.append(now)
    assert len(times) == 10
    assert all(abs(b - a - period) <= 1000 for a, b in zip(times, times[1:]))


def test_a_periodic_timer_that_is_asked_late_fires_once_and_keeps_its_phase() -> None:
    pit = Pit()
    program(pit, 0, 2, 11932)
    period = 11932 * NS // HZ
    assert pit.expire(5 * period + 7)
    assert not pit.expire(5 * period + 8)
    assert pit.due_ns == 6 * period


@pytest.mark.parametrize("mode", [0, 4])
def test_a_one_shot_timer_fires_once(mode: int) -> None:
    pit = Pit()
    program(pit, 0, mode, 1000, 100)
    due = 100 + 1000 * NS // HZ
    assert pit.due_ns == due
    assert not pit.expire(due - 1)
    assert pit.expire(due)
    assert pit.due_ns is None
    assert not pit.expire(due + NS)


def test_a_new_mode_disarms_until_a_count_is_complete() -> None:
    pit = Pit()
    program(pit, 0, 2, 1000)
    pit.write(0x43, 0x30, 0)
    assert pit.due_ns is None
    pit.write(0x40, 10, 0)
    assert pit.due_ns is None
    pit.write(0x40, 0, 0)
    assert pit.due_ns == 10 * NS // HZ


def test_a_count_of_zero_is_65536() -> None:
    pit = Pit()
    program(pit, 0, 0, 0)
    assert pit.due_ns == 65536 * NS // HZ


@pytest.mark.parametrize(("access", "expected"), [(1, 0x34), (2, 0x3400)])
def test_counts_of_one_byte(access: int, expected: int) -> None:
    pit = Pit()
    pit.write(0x43, access << 4, 0)
    pit.write(0x40, 0x34, 0)
    assert pit.due_ns == expected * NS // HZ


def test_the_count_goes_down_with_time_and_is_read_low_byte_first() -> None:
    pit = Pit()
    program(pit, 0, 0, 0x8000)
    assert read_count(pit, 0, 0) == 0x8000
    assert read_count(pit, 0, 0x1234 * NS // HZ + 1) == 0x8000 - 0x1234
    assert read_count(pit, 0, 0x8001 * NS // HZ + 1) == 0xFFFF, "a one-shot counts on through zero"


def test_a_periodic_count_starts_over() -> None:
    pit = Pit()
    program(pit, 0, 2, 1000)
    assert read_count(pit, 0, 2500 * NS // HZ + 1) == 500


def test_a_latched_count_stands_still_until_both_bytes_are_read() -> None:
    pit = Pit()
    program(pit, 0, 2, 0x8000)
    pit.write(0x43, 0x00, 0x123 * NS // HZ + 1)
    later = 0x4000 * NS // HZ + 1
    assert read_count(pit, 0, later) == 0x8000 - 0x123
    assert read_count(pit, 0, later) == 0x4000


def test_a_second_latch_before_the_read_is_ignored() -> None:
    # Intel 8254 data sheet, "Counter Latch Command": ignored until the count is read.
    pit = Pit()
    program(pit, 0, 2, 0x8000)
    pit.write(0x43, 0x00, 0)
    pit.write(0x43, 0x00, 0x1000 * NS // HZ + 1)
    assert read_count(pit, 0, 0x2000 * NS // HZ) == 0x8000


def test_channel_2_runs_from_its_gate_and_shows_its_output_at_port_61() -> None:
    pit = Pit()
    pit.write(0x61, 0, 0)
    program(pit, 2, 0, 1000)
    pit.write(0x61, 1, 5 * NS)
    assert pit.read(0x61, 5 * NS) & 0x21 == 0x01
    assert pit.read(0x61, 5 * NS + 999 * NS // HZ) & 0x20 == 0
    assert pit.read(0x61, 5 * NS + 1000 * NS // HZ + 1) & 0x20
    assert pit.due_ns is None, "only channel 0 interrupts"


def test_the_refresh_bit_of_port_61_toggles() -> None:
    pit = Pit()
    bits = [pit.read(0x61, 0) & 0x10 for _ in range(4)]
    assert bits[0] != bits[1]
    assert bits[:2] == bits[2:]


def test_a_timer_saved_in_the_middle_goes_on_the_same() -> None:
    pit = Pit()
    program(pit, 0, 2, 4321, 77)
    program(pit, 2, 0, 1000)
    pit.write(0x61, 3, 99)
    pit.write(0x43, 0x00, 1000)
    pit.read(0x40, 1000)
    pit.write(0x42, 0x11, 1000)
    other = Pit()
    other.restore(json.loads(json.dumps(pit.save())))
    assert other.save() == pit.save()
    for now in (2000, 10**6, 10**7):
        assert other.expire(now) == pit.expire(now)
        for port in Pit.PORTS:
            assert other.read(port, now) == pit.read(port, now)
    assert other.due_ns == pit.due_ns


# -- UART ----------------------------------------------------------------------------------------------

PORT = 0x3F8
DATA, IER, IIR, LCR, MCR, LSR, MSR, SCRATCH = (PORT + i for i in range(8))


class Line:
    """A UART on line 4 of an initialised pair of PICs."""

    def __init__(self) -> None:
        self.pic = ready_pic()
        self.sent = bytearray()
        self.uart = Uart(PORT, 4, self.pic, self.sent.append)

    def interrupts(self) -> bool:
        """Whether its interrupt is due (taken and ended)."""
        vector = self.pic.acknowledge()
        self.pic.write(0x20, EOI)
        assert vector in (None, 0x34)
        return vector is not None


def test_bytes_written_are_sent_at_once() -> None:
    line = Line()
    for value in b"hi\xff\x00":
        assert line.uart.read(LSR) & 0x60 == 0x60
        line.uart.write(DATA, value)
    assert line.sent == b"hi\xff\x00"


def test_the_divisor_is_behind_dlab() -> None:
    line = Line()
    line.uart.write(LCR, 0x83)
    line.uart.write(DATA, 0x0C)
    line.uart.write(IER, 0x01)
    assert (line.uart.read(DATA), line.uart.read(IER)) == (0x0C, 0x01)
    line.uart.write(LCR, 0x03)
    assert line.uart.read(IER) == 0
    assert line.uart.read(LCR) == 3
    assert line.sent == b""


def test_only_four_interrupts_can_be_enabled() -> None:
    # That the upper bits read back as zero is how Linux tells a 16550A from an XScale UART.
    line = Line()
    line.uart.write(IER, 0xFF)
    assert line.uart.read(IER) == 0x0F


def test_the_scratch_register_keeps_what_is_written() -> None:
    line = Line()
    line.uart.write(SCRATCH, 0xA5)
    assert line.uart.read(SCRATCH) == 0xA5


def test_fifos_identify_a_16550a() -> None:
    line = Line()
    assert line.uart.read(IIR) == 0x01
    line.uart.write(IIR, 0x01)
    assert line.uart.read(IIR) == 0xC1
    line.uart.write(IIR, 0x00)
    assert line.uart.read(IIR) == 0x01


@pytest.mark.parametrize(
    ("mcr", "msr"), [(0x00, 0x00), (0x01, 0x20), (0x02, 0x10), (0x04, 0x40), (0x08, 0x80), (0x0A, 0x90)]
)
def test_loop_back_turns_control_into_status(mcr: int, msr: int) -> None:
    # 0x1A giving 0x90 is the test by which Linux decides that there is a UART at all.
    line = Line()
    line.uart.write(MCR, 0x10 | mcr)
    assert line.uart.read(MSR) & 0xF0 == msr
    line.uart.write(DATA, 0x5A)
    assert line.sent == b""
    assert line.uart.read(LSR) & 1
    assert line.uart.read(DATA) == 0x5A


def test_without_loop_back_the_other_side_is_there() -> None:
    assert Line().uart.read(MSR) == 0xB0


def test_enabling_the_transmit_interrupt_raises_it_and_reading_iir_ends_it() -> None:
    line = Line()
    line.uart.write(MCR, 0x08)
    line.uart.write(IER, 0x02)
    assert line.interrupts()
    assert line.uart.read(IIR) == 0x02
    assert line.uart.read(IIR) == 0x01
    assert not line.interrupts()
    line.uart.write(DATA, 0x41)
    assert line.interrupts()


def test_without_out2_no_interrupt_leaves_the_card() -> None:
    line = Line()
    line.uart.write(IER, 0x03)
    line.uart.receive(b"x")
    assert not line.interrupts()
    line.uart.write(MCR, 0x08)
    assert line.interrupts()


def test_received_bytes_queue_and_interrupt_until_read() -> None:
    line = Line()
    line.uart.write(MCR, 0x08)
    line.uart.write(IER, 0x01)
    assert not line.uart.read(LSR) & 1
    line.uart.receive(b"abc")
    assert line.interrupts()
    assert line.uart.read(IIR) == 0x04
    assert bytes(line.uart.read(DATA) for _ in range(3)) == b"abc"
    assert line.uart.read(IIR) == 0x01
    assert not line.interrupts()
    assert not line.uart.read(LSR) & 1
    assert line.uart.read(DATA) == 0


def test_receiving_ranks_above_transmitting() -> None:
    line = Line()
    line.uart.write(MCR, 0x08)
    line.uart.write(IER, 0x03)
    line.uart.receive(b"a")
    assert line.uart.read(IIR) == 0x04
    line.uart.read(DATA)
    assert line.uart.read(IIR) == 0x02


def test_clearing_the_receive_fifo_drops_the_queue() -> None:
    line = Line()
    line.uart.receive(b"abc")
    line.uart.write(IIR, 0x03)
    assert not line.uart.read(LSR) & 1


def test_a_uart_saved_in_the_middle_goes_on_the_same() -> None:
    line = Line()
    for port, value in ((LCR, 0x80), (DATA, 12), (LCR, 3), (MCR, 0x0B), (IER, 3), (IIR, 1), (SCRATCH, 7)):
        line.uart.write(port, value)
    line.uart.receive(b"\x00\xffz")
    line.uart.read(DATA)
    other = Line()
    other.uart.restore(json.loads(json.dumps(line.uart.save())))
    assert other.uart.save() == line.uart.save()
    assert [other.uart.read(p) for p in range(PORT, PORT + 8)] == [line.uart.read(p) for p in range(PORT, PORT + 8)]


def test_two_states_do_not_share_the_divisor() -> None:
    line, other = Line(), Line()
    state = line.uart.save()
    other.uart.restore(state)
    other.uart.write(LCR, 0x80)
    other.uart.write(DATA, 99)
    line.uart.write(LCR, 0x80)
    assert line.uart.read(DATA) == 1


# -- CMOS ----------------------------------------------------------------------------------------------


def test_the_clock_stands_at_the_first_of_january_2026() -> None:
    cmos = Cmos()

    def read(index: int) -> int:
        cmos.write(0x70, index)
        return cmos.read(0x71)

    assert [f"{read(i):02x}" for i in (0x32, 9, 8, 7, 4, 2, 0)] == ["20", "26", "01", "01", "00", "00", "00"]
    assert read(6) == 5, "a Thursday; the week starts on Sunday, 1"
    assert not read(0x0A) & 0x80, "no update in progress"
    assert read(0x0B) & 6 == 2, "24 hours, BCD"
    assert read(0x0D) & 0x80, "the battery is good"


def test_the_nmi_bit_is_no_part_of_the_index_and_writes_change_nothing() -> None:
    cmos = Cmos()
    cmos.write(0x70, 0x80 | 9)
    cmos.write(0x71, 0x99)
    assert cmos.read(0x71) == 0x26
