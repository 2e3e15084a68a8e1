"""What was left out while reading, and why: named once in the log, kept in a file, listed at the end."""

import contextlib
import json
import logging
import os
import tempfile
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)


class SkipLog:
    """Everything a stream had to skip; all processes of a machine may write to the same one.

    Args:
        path: a file of JSON lines {"source", "id", "reason"} that grows; by default a temporary one.
    """

    def __init__(self, path: str | os.PathLike | None = None) -> None:
        self._seen: set[tuple[str, str]] = set()
        if path is None:
            handle, name = tempfile.mkstemp(prefix="voxelfm-skipped-", suffix=".jsonl")
            os.close(handle)
            self.path = Path(name)
            # Workers hold copies of this object: only the process that made the file removes it.
            weakref.finalize(self, _remove, name, os.getpid())
        else:
            self.path = Path(path)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._seen = {(e["source"], e["id"]) for e in self.entries()}

    def record(self, source: str, item: str, reason: str) -> None:
        """Note one skipped shard, row or volume; repeated ones count once."""
        if (source, item) in self._seen:
            return
        self._seen.add((source, item))
        logger.warning("skipped %s of %s: %s", item, source, reason)
        line = json.dumps({"source": source, "id": item, "reason": reason}) + "\n"
        with contextlib.suppress(OSError), open(self.path, "ab") as file:  # one write: lines of processes do not mix
            file.write(line.encode())

    def entries(self) -> list[dict[str, str]]:
        """All skipped items of all processes, each once."""
        found = {}
        with contextlib.suppress(OSError):
            for line in self.path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    entry = json.loads(line)
                    found[entry["source"], entry["id"]] = entry
        return list(found.values())

    def summary(self, most: int = 20) -> str:
        """One paragraph: how many were skipped, and which."""
        entries = self.entries()
        if not entries:
            return "Nothing was skipped."
        named = [f"{e['id']} ({e['reason']})" for e in entries[:most]]
        more = f" and {len(entries) - most} more, see {self.path}" if len(entries) > most else ""
        return f"{len(entries)} skipped: {'; '.join(named)}{more}"

    def __getstate__(self) -> dict:
        return {"path": self.path, "_seen": set()}


def _remove(name: str, owner: int) -> None:
    if os.getpid() == owner:
        with contextlib.suppress(OSError):
            os.unlink(name)
