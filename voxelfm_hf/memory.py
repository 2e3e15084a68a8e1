"""The most memory this process has held at once."""

import re
from pathlib import Path

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def peak_memory_bytes() -> int:
    """The peak of the resident set, since the start of the process or the last `reset_peak_memory`."""
    if _STATUS.is_file():
        # Unlike ru_maxrss, it does not start at what the parent process held.
        found = re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())
        if found:
            return int(found.group(1)) * 1024
    import resource
    import sys

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Starts the peak again at what is held now; without effect where the system has no way to do so (not Linux)."""
    try:
        # 5 is the code for the peak, see proc(5).
        _CLEAR.write_text("5")
    except OSError:
        return
