"""How large, long and many the page's jobs may be."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """What one upload may take.

    Attributes:
        upload_mb: Size as sent.
        unpacked_bytes: Size of what is in an archive; a chest CT of 0.5 mm slices is about 400 MB.
        files: Files in an archive.
        voxels: Voxels of a scan.
        ratio: Unpacked to packed; deflate packs CT two to four times.
        seconds: Time for unpacking and reading.
        memory_bytes: Address space of the process that reads (on Linux).
    """

    upload_mb: int = 500
    unpacked_bytes: int = 2_000_000_000
    files: int = 5000
    voxels: int = 512 * 512 * 1200
    ratio: int = 100
    seconds: float = 120
    memory_bytes: int = 8_000_000_000


# Reading, embedding, probes and reports of all users together run one at a time; what waits beyond this is turned away.
MAX_WAITING = 20
# Scans of all users that are in memory; a further one waits until somebody has left.
MAX_HELD_BYTES = 6_000_000_000
# Scans of people who left are dropped after this many seconds.
SESSION_SECONDS = 1800
# The longest that a report may be written.
REPORT_SECONDS = 120
# From the end of an upload to the page taking it.
CLAIM_SECONDS = 10
