"""A Hub on loopback: repositories, LFS, commits and revisions, as huggingface_hub asks for them."""

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote

LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".gz")
KINDS = {"model": "", "dataset": "datasets/", "space": "spaces/"}


@dataclass
class Repository:
    """The commits of one repository, oldest first: sha -> {path: bytes}."""

    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def files(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        """(sha, files) at "main" or a sha."""
        sha = list(self.commits)[-1] if revision == "main" else revision
        return (sha, self.commits[sha]) if sha in self.commits else None

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)}{sorted(files)}".encode()).hexdigest()
        self.commits[sha] = files
        return sha


@dataclass
class Hub:
    """What the server holds and has seen.

    Attributes:
        repositories: "user/name", "datasets/user/name" or "spaces/user/name" -> repository.
        lfs: oid -> content.
        asked: "METHOD path" of every request.
        uploads_allowed: LFS uploads that are still taken; later ones break off in the middle. None takes all.
        token: The token that may write.
    """

    endpoint: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    lfs: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    uploads_allowed: int | None = None
    token: str = "hf_loopback"


@contextmanager
def loopback_hub(folders: Mapping[str, Path] | None = None) -> Iterator[Hub]:
    """Runs the server with the content of some folders as repositories; what is pushed is lost when it ends.

    Args:
        folders: "user/name" (or "datasets/user/name") -> folder.
    """
    hub = Hub()
    for name, folder in (folders or {}).items():
        files = {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        hub.repositories[name] = Repository()
        hub.repositories[name].commit(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def hub_environment(hub: Hub, home: Path) -> dict[str, str]:
    """Environment of a process that talks to the loopback Hub, may write to it, and has a cache of its own."""
    kept = {key: value for key, value in os.environ.items() if key != "HF_HUB_OFFLINE"}
    return {
        **kept,
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": hub.token,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "PYTHONPATH": os.getcwd(),
    }


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def answer(self, value=b"", status: int = 200, headers: dict[str, str] | None = None) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _content(self, content: bytes, headers: dict[str, str]) -> None:
        """The content, or the part that a Range header asks for."""
        asked = self.headers.get("Range", "").removeprefix("bytes=")
        if not asked:
            return self.answer(content, headers=headers)
        first, _, last = asked.partition("-")
        end = min(int(last) + 1 if last else len(content), len(content))
        headers["Content-Range"] = f"bytes {first}-{end - 1}/{len(content)}"
        return self.answer(content[int(first) : end], 206, headers)

    def missing(self, what: str) -> None:
        self.answer({"error": f"{what} not found"}, 404, {"X-Error-Code": what})

    def may_write(self) -> bool:
        if self.headers.get("Authorization") == f"Bearer {self.hub.token}":
            return True
        self.body()
        self.answer({"error": "Invalid credentials"}, 401)
        return False

    def do_GET(self):
        path = unquote(self.path.split("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if path.startswith("/api/whoami"):
            return self.answer({"name": "user", "type": "user", "orgs": [], "auth": {}})
        for name, repository in self.hub.repositories.items():
            kind = next((kind for kind, prefix in KINDS.items() if prefix and name.startswith(prefix)), "model")
            api = f"/api/{kind}s/{name.removeprefix(KINDS[kind])}"
            if path == api or path.startswith((f"{api}/revision/", f"{api}/tree/")):
                revision = path.removeprefix(api).split("/")[2] if path != api else "main"
                found = repository.files(revision)
                if found is None:
                    return self.missing("RevisionNotFound")
                sha, files = found
                if path.startswith(f"{api}/tree/"):
                    below = path.removeprefix(f"{api}/tree/").partition("/")[2]
                    return self.answer(self._tree(files, below, recursive="recursive=true" in self.path.lower()))
                return self.answer(
                    {
                        "id": name.removeprefix(KINDS[kind]),
                        "sha": sha,
                        "siblings": [{"rfilename": file} for file in files],
                        "private": repository.private,
                        "tags": [],
                        "downloads": 0,
                        "likes": 0,
                    }
                )
            if path.startswith(f"/{name}/resolve/"):
                revision, file = path.removeprefix(f"/{name}/resolve/").split("/", 1)
                found = repository.files(revision)
                if found is None:
                    return self.missing("RevisionNotFound")
                sha, files = found
                if file not in files:
                    return self.answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha})
                etag = hashlib.sha256(files[file]).hexdigest()
                return self._content(files[file], {"ETag": f'"{etag}"', "X-Repo-Commit": sha})
        return self.missing("RepoNotFound")

    do_HEAD = do_GET

    def _tree(self, files: dict[str, bytes], folder: str, *, recursive: bool) -> list[dict]:
        inside = {file: content for file, content in files.items() if not folder or file.startswith(f"{folder}/")}
        start = len(folder) + 1 if folder else 0
        folders = {file[: start + file[start:].index("/")] for file in inside if "/" in file[start:]}
        listed = inside if recursive else {f: content for f, content in inside.items() if "/" not in f[start:]}
        return [
            *({"type": "directory", "path": path, "oid": "0", "size": 0} for path in sorted(folders)),
            *(self._entry(path, content) for path, content in listed.items()),
        ]

    def _entry(self, path: str, content: bytes) -> dict:
        entry = {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
        if path.endswith(LFS_SUFFIXES):
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
        return entry

    def do_POST(self):
        path = unquote(self.path.split("?")[0])
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self.body()
            return self.answer({"errors": [], "warnings": []})
        if "/paths-info/" in path:
            return self._paths_info(path)
        if not self.may_write():
            return None
        body = self.body()
        if path == "/api/repos/create":
            asked = json.loads(body)
            owner = asked.get("organization") or "user"
            name = f"{KINDS[asked.get('type', 'model')]}{owner}/{asked['name']}"
            url = f"{self.hub.endpoint}/{name}"
            if name in self.hub.repositories:
                return self.answer({"error": "You already created this repo", "url": url}, 409)
            private = asked.get("private") or asked.get("visibility") == "private"
            self.hub.repositories[name] = Repository(private=bool(private))
            self.hub.repositories[name].commit({".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.answer({"url": url, "name": name})
        if "/preupload/" in path:
            files = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = []
            for wanted in json.loads(body)["objects"]:
                entry = {"oid": wanted["oid"], "size": wanted["size"]}
                if wanted["oid"] not in self.hub.lfs:
                    entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/lfs/{wanted['oid']}"}}
                objects.append(entry)
            return self.answer({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            return self._commit(path, body)
        return self.missing("RepoNotFound")

    def repository(self, path: str) -> Repository:
        kind, owner, name = path.removeprefix("/api/").split("/")[:3]
        return self.hub.repositories[f"{KINDS[kind.removesuffix('s')]}{owner}/{name}"]

    def _paths_info(self, path: str) -> None:
        asked = parse_qs(self.body().decode())
        _, files = self.repository(path).files(path.rsplit("/", 1)[-1]) or ("", {})
        found = [entry for entry in self._tree(files, "", recursive=True) if entry["path"] in asked.get("paths", [])]
        self.answer(found)

    def _commit(self, path: str, body: bytes) -> None:
        repository = self.repository(path)
        _, before = repository.files("main") or ("", {})
        files = dict(before)
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        sha = repository.commit(files)
        name = path.removeprefix("/api/models/").removeprefix("/api/").split("/commit/")[0]
        self.answer({"commitUrl": f"{self.hub.endpoint}/{name}/commit/{sha}", "commitOid": sha, "success": True})

    def do_PUT(self):
        self.hub.asked.append(f"PUT {self.path}")
        if self.hub.uploads_allowed == 0:
            self.rfile.read(1)
            self.close_connection = True
            return None
        if self.hub.uploads_allowed is not None:
            self.hub.uploads_allowed -= 1
        content = self.body()
        oid = self.path.rsplit("/", 1)[-1]
        if hashlib.sha256(content).hexdigest() != oid:
            return self.answer({"error": "content does not match its oid"}, 400)
        self.hub.lfs[oid] = content
        return self.answer()
