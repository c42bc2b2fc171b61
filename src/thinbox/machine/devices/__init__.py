"""The devices a PC kernel cannot do without: PIC, PIT, UART, CMOS clock."""
