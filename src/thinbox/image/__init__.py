"""A kernel file, and what can be known from it without running it.

    resolve_kernel -> KernelFile -> load_facts -> (KernelImage, KernelFacts)

`source` finds or fetches the file, `kernel` takes it apart, `kallsyms`, `symbols` and `btf` read what the
kernel knows about itself, `facts` joins that and caches it. Nothing here knows about the machine.
"""

from thinbox.image.btf import TypeTable
from thinbox.image.cache import cache_dir
from thinbox.image.elf import Section, Segment
from thinbox.image.facts import KernelFacts, load_facts
from thinbox.image.kernel import KernelImage, load_kernel_image
from thinbox.image.source import KernelFile, Progress, fetch_package, list_kernels, resolve_kernel
from thinbox.image.symbols import Symbol, SymbolTable

__all__ = [
    "KernelFacts",
    "KernelFile",
    "KernelImage",
    "Progress",
    "Section",
    "Segment",
    "Symbol",
    "SymbolTable",
    "TypeTable",
    "cache_dir",
    "fetch_package",
    "list_kernels",
    "load_facts",
    "load_kernel_image",
    "resolve_kernel",
]
