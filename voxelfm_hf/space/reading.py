"""Reads one upload in a process of its own: `python -m voxelfm_hf.space.reading PATH FOLDER LIMITS` writes to stdout.

A file made to do harm can cost no more than this process: its memory is limited here, its time by the page.
"""

import json
import os
import sys
from pathlib import Path

from voxelfm_hf.space.limits import Limits


def main() -> None:
    path, folder, words = sys.argv[1:]
    limits = Limits(**json.loads(words))
    # Libraries that print would break the answer.
    answer = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    if sys.platform == "linux":
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (limits.memory_bytes, limits.memory_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    from voxelfm_hf.space.uploads import open_scan, to_bytes
    from voxelfm_hf.volumes.errors import ScanError

    try:
        data = to_bytes(open_scan(Path(path), Path(folder), limits))
    except ScanError as error:
        data = json.dumps({"error": str(error)}).encode()
    with answer:
        answer.write(data)


if __name__ == "__main__":
    main()
