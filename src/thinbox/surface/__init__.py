"""What an exploit inside a call still has: code pages, gadgets, whole functions, writable pages.

`load_gadgets` finds the gadgets of the live kernel, `load_surface` adds what the measure needs besides,
`measure_call` and `tabulate` measure calls by it. The unisolated kernel is 100 %.
"""
