"""What differs between kernels, one module for each structure or feature of the kernel.

Why it exists: kernels keep the same thing in other places, and more kernels come. Here stands, for each thing, every
shape of it that is known, newest first, with the source that has it. All other rooms ask this one.

Rules of this room:
- A shape is recognised by the kernel's own types and symbols, or measured on the running kernel; versions are never
  compared.
- What is not recognised is refused, with one line that names everything that is missing and what that disables
  (`MissingFactError`). Nothing is assumed to be as it was.
"""
