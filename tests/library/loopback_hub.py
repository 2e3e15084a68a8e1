"""A read-only Hub on loopback: serves folders as repositories, as huggingface_hub asks for them."""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def loopback_hub(repositories: dict[str, Path]) -> Iterator[tuple[str, list[str]]]:
    """Serves {"user/name": folder}; gives the endpoint and the list of paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), "X-Repo-Commit": COMMIT, **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self):
            path = self.path.split("?")[0]
            asked.append(path)
            for name, folder in repositories.items():
                files = {p.relative_to(folder).as_posix(): p for p in folder.rglob("*") if p.is_file()}
                if path.startswith(f"/api/models/{name}/tree/"):
                    tree = [{"type": "file", "path": f, "size": p.stat().st_size, "oid": "0"} for f, p in files.items()]
                    return self.answer(json.dumps(tree).encode())
                if path == f"/api/models/{name}" or path.startswith(f"/api/models/{name}/revision/"):
                    siblings = [{"rfilename": f} for f in files]
                    facts = {
                        "id": name,
                        "sha": COMMIT,
                        "siblings": siblings,
                        "private": False,
                        "tags": [],
                        "downloads": 0,
                    }
                    return self.answer(json.dumps(facts).encode())
                if path.startswith(f"/{name}/resolve/"):
                    file = files.get(path.removeprefix(f"/{name}/resolve/").split("/", 1)[1])
                    if file is None:
                        return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound"})
                    body = file.read_bytes()
                    return self.answer(body, headers={"ETag": f'"{hashlib.sha1(body).hexdigest()}"'})
            self.answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

        do_HEAD = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", asked
    finally:
        server.shutdown()
        server.server_close()


def hub_environment(endpoint: str, home: Path) -> dict[str, str]:
    """Environment of a process that talks to the loopback Hub with a cache of its own."""
    import os

    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    return {
        **kept,
        "HF_ENDPOINT": endpoint,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.getcwd(),
    }
