"""How the C library keeps the memory of a process."""

import ctypes
import os

# Of glibc's <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8


def keep_freed_memory() -> bool:
    """Lets freed memory stay with this process, to be used again. For processes that compute.

    Left to itself glibc hands every large block back to the kernel and gets it anew, page by page:
    on a CPU each call of a compiled program, whose temporaries are one such block, spent up to
    three quarters of its time on that (docs/performance.md). The process keeps its peak size.

    All threads share one arena then: the heaps of others end at 64 MiB and go back when they are
    empty. An allocator that was put before glibc's (LD_PRELOAD) goes its own way.

    Returns:
      Whether glibc was told: it is the C library, and none of its own settings of this (variables
      MALLOC_..., GLIBC_TUNABLES) says otherwise.
    """
    set_by_user = any(
        name.startswith("MALLOC_") for name in os.environ
    ) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", "")
    library = ctypes.CDLL(None) if os.name == "posix" else None
    if set_by_user or library is None or not hasattr(library, "gnu_get_libc_version"):
        return False
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    kept = [library.mallopt(name, value) for name, value in settings]
    return all(kept)
