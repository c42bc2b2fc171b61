"""The machine: one x86-64 CPU on Unicorn, RAM, paging, interrupts, devices, virtual time, snapshots.

The only room that imports Unicorn and Numba.
"""
