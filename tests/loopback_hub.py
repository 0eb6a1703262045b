"""A Hub on 127.0.0.1 for tests: what huggingface_hub asks of it, in memory, and faults at will.

Clients find it through `environment`, which must be set before huggingface_hub is imported: in a
process of their own.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

OWNER, TOKEN = "tester", "hf_loopbacktoken"
Files = dict[str, bytes]
_ALWAYS_LFS = (".safetensors", ".bin", ".pkl", ".arrow", ".npy", ".png")


class RefusalError(Exception):
    def __init__(self, status: int, code: str = "", message: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message


@dataclass
class Fault:
    """What happens to the next `times` requests whose "METHOD /path" matches.

    `answer` is a status; "stall": no answer while the Hub lives; "cut": half the body is read, then
    the line is dead.
    """

    pattern: str
    answer: int | str
    times: int = 1


@dataclass
class Repository:
    is_private: bool
    branches: dict[str, str] = field(default_factory=dict)  # name -> commit
    commits: dict[str, Files] = field(default_factory=dict)

    def commit(self, branch: str, files: Files) -> str:
        commit = hashlib.sha1(f"{branch} {len(self.commits)}".encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def resolve(self, revision: str) -> str:
        commit = self.branches.get(revision, revision)
        if commit not in self.commits:
            raise RefusalError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def files(self, revision: str = "main") -> Files:
        return self.commits[self.resolve(revision)]


class LoopbackHub:
    """Repositories by (type, id), requests so far as "METHOD /path", and faults still to come."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.large_files: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.received: list[str] = []  # large files that were sent, by digest
        self.faults: list[Fault] = []
        self.tokens = {TOKEN}
        self.is_closing = threading.Event()
        self.lock = threading.RLock()
        handler = type("Handler", (_Handler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def environment(self, folder: Path, *, token: str = TOKEN) -> dict[str, str]:
        """Return what a client's process needs, with its caches in `folder`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(folder / "hf"),
            "HF_TOKEN": token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }

    def model(self, name: str) -> Repository:
        return self.repositories["model", f"{OWNER}/{name}"]

    def fault_of(self, request: str) -> int | str | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault.answer
        return None


@contextmanager
def running_hub() -> Iterator[LoopbackHub]:
    hub = LoopbackHub()
    thread = threading.Thread(
        target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
    )
    thread.start()
    try:
        yield hub
    finally:
        hub.is_closing.set()
        hub.server.shutdown()
        hub.server.server_close()


def _git_digest(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _is_large(path: str) -> bool:
    return path.endswith(_ALWAYS_LFS)


def _digest(path: str, content: bytes) -> str:
    return hashlib.sha256(content).hexdigest() if _is_large(path) else _git_digest(content)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *arguments: Any) -> None:
        pass

    def handle_request(self) -> None:
        url = urlsplit(self.path)
        self.query = url.query
        request = f"{self.command} {url.path}"
        self.hub.requests.append(request)
        fault = self.hub.fault_of(request)
        length = int(self.headers.get("Content-Length") or 0)
        if fault == "cut":
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        if fault == "stall":
            self.hub.is_closing.wait()
            self.close_connection = True
        elif isinstance(fault, int):
            self.answer({"error": "injected"}, status=fault)
        else:
            self.route(url.path)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def answer(
        self, value: Any = None, *, status: int = 200, body: bytes | None = None, **headers: str
    ) -> None:
        content = json.dumps({} if value is None else value).encode() if body is None else body
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, text in headers.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def route(self, path: str) -> None:
        try:
            for pattern, method in _ROUTES:
                if match := re.fullmatch(pattern, path):
                    with self.hub.lock:
                        method(self, *(unquote(part or "") for part in match.groups()))
                    return
            raise RefusalError(404, "RepoNotFound", f"no such address: {path}")
        except RefusalError as refusal:
            headers = {"X_Error_Code": refusal.code} if refusal.code else {}
            self.answer({"error": refusal.message}, status=refusal.status, **headers)

    @property
    def is_known(self) -> bool:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") in self.hub.tokens

    def check_token(self) -> None:
        if not self.is_known:
            raise RefusalError(401, message="Invalid username or password.")

    def repository(self, kind: str, name: str) -> Repository:
        found = self.hub.repositories.get((kind, name))
        if found is None or (found.is_private and not self.is_known):
            raise RefusalError(
                404 if self.is_known else 401, "RepoNotFound", "Repository not found"
            )
        return found

    def validate_yaml(self) -> None:
        self.answer({"errors": [], "warnings": []})

    def create(self) -> None:
        self.check_token()
        asked = json.loads(self.body)
        kind = asked.get("type") or "model"
        name = f"{asked.get('organization') or OWNER}/{asked['name']}"
        url = f"{self.hub.url}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repositories:
            self.answer({"error": "You already created this repo", "url": url}, status=409)
            return
        repository = self.hub.repositories[kind, name] = Repository(
            asked.get("visibility") == "private"
        )
        repository.commit("main", {})
        self.answer({"url": url})

    def large_batch(self, kind: str, name: str) -> None:
        self.check_token()
        self.repository(kind.removesuffix("s/") or "model", name)
        objects = []
        for entry in json.loads(self.body)["objects"]:
            href = {"href": f"{self.hub.url}/lfs/{entry['oid']}"}
            is_new = entry["oid"] not in self.hub.large_files
            actions = {"actions": {"upload": href, "verify": href}} if is_new else {}
            objects.append({"oid": entry["oid"], "size": entry["size"]} | actions)
        self.answer({"transfer": "basic", "objects": objects})

    def large_file(self, digest: str) -> None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != digest:
                raise RefusalError(400, message="digest mismatch")
            self.hub.large_files[digest] = self.body
            self.hub.received.append(digest)
        elif digest not in self.hub.large_files:
            raise RefusalError(404)
        self.answer()

    def preupload(self, kind: str, name: str, revision: str) -> None:
        self.check_token()
        present = self.repository(kind, name).files(revision)
        answers = []
        for entry in json.loads(self.body)["files"]:
            path = entry["path"]
            mode = "lfs" if _is_large(path) else "regular"
            known = {"oid": _digest(path, present[path])} if path in present else {}
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False} | known)
        self.answer({"files": answers})

    def commit(self, kind: str, name: str, revision: str) -> None:
        self.check_token()
        repository = self.repository(kind, name)
        files = dict(repository.files(revision))
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.large_files[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(revision, files)
        self.answer({"commitOid": commit, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}"})

    def branch(self, kind: str, name: str, branch: str) -> None:
        self.check_token()
        repository = self.repository(kind, name)
        if branch in repository.branches:
            raise RefusalError(409, message="Reference already exists")
        repository.branches[branch] = repository.branches["main"]
        self.answer()

    def info(self, kind: str, name: str, revision: str) -> None:
        repository = self.repository(kind, name)
        commit = repository.resolve(revision or "main")
        siblings = [{"rfilename": path} for path in sorted(repository.commits[commit])]
        self.answer(
            {
                "id": name,
                "sha": commit,
                "private": repository.is_private,
                "siblings": siblings,
                "tags": [],
            }
        )

    def tree(self, kind: str, name: str, revision: str, folder: str) -> None:
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for path, content in sorted(self.repository(kind, name).files(revision).items()):
            if not path.startswith(prefix):
                continue
            *folders, _ = path.removeprefix(prefix).split("/")
            if folders and "recursive=true" not in self.query.lower():
                entries[prefix + folders[0]] = {"type": "directory", "oid": "0" * 40, "size": 0}
                continue
            entries[path] = {"type": "file", "size": len(content), "oid": _git_digest(content)}
            if _is_large(path):
                large = {"oid": _digest(path, content), "size": len(content), "pointerSize": 134}
                entries[path]["lfs"] = large
        if prefix and not entries:
            raise RefusalError(404, "EntryNotFound", f"{folder} does not exist")
        self.answer([{"path": path} | entry for path, entry in entries.items()])

    def file(self, kind: str, name: str, revision: str, path: str) -> None:
        repository = self.repository(kind.removesuffix("s/") or "model", name)
        commit = repository.resolve(revision)
        if path not in repository.commits[commit]:
            raise RefusalError(404, "EntryNotFound", "Entry not found")
        content = repository.commits[commit][path]
        tag = f'"{_digest(path, content)}"'
        large = (
            {"X_Linked_Etag": tag, "X_Linked_Size": str(len(content))} if _is_large(path) else {}
        )
        self.answer(body=content, X_Repo_Commit=commit, ETag=tag, **large)


_NAME = r"([^/]+/[^/]+)"
_API = rf"/api/(model|dataset)s/{_NAME}"
_ROUTES: list[tuple[str, Callable[..., None]]] = [
    (r"/api/validate-yaml", _Handler.validate_yaml),
    (r"/api/repos/create", _Handler.create),
    (r"/lfs/(\w+)", _Handler.large_file),
    (rf"/(datasets/)?{_NAME}\.git/info/lfs/objects/batch", _Handler.large_batch),
    (rf"{_API}/preupload/([^/]+)", _Handler.preupload),
    (rf"{_API}/commit/([^/]+)", _Handler.commit),
    (rf"{_API}/branch/([^/]+)", _Handler.branch),
    (rf"{_API}(?:/revision/([^/]+))?", _Handler.info),
    (rf"{_API}/tree/([^/]+)(?:/(.+))?", _Handler.tree),
    (rf"/(datasets/)?{_NAME}/resolve/([^/]+)/(.+)", _Handler.file),
]


def text_files(repository: Repository) -> dict[str, str]:
    """Return every file of every branch that is text, by "branch:path"."""
    branches = ((name, repository.files(name)) for name in repository.branches)
    named = itertools.chain.from_iterable(
        ((f"{name}:{path}", content) for path, content in files.items()) for name, files in branches
    )
    return {name: content.decode() for name, content in named if b"\0" not in content}
