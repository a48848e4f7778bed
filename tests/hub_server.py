"A local server that speaks the part of the Hub's API that is used: reading, creating, uploading; in memory."

import base64
import fnmatch
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import yaml

TOKEN = "hf_of_the_test"
REPO = r"(?:(?P<kind>models|datasets)/)?(?P<id>[\w.-]+/[\w.-]+?)"


@dataclass
class Repo:
    "A model or a dataset, with its last commit only."

    private: bool = False
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def sha(self) -> str:
        "The commit."
        return hashlib.sha1(f"{self.commits} {sorted(self.files)}".encode()).hexdigest()

    @property
    def card(self) -> dict[str, Any]:
        "The metadata of README.md."
        match = re.match(r"---\n(.*?)\n---", self.files.get("README.md", b"").decode(), flags=re.DOTALL)
        return yaml.safe_load(match[1]) if match else {}


class Store:
    "All repositories of a server, what was asked, and the large files."

    def __init__(self) -> None:
        self.repos: dict[str, Repo] = {}  # `models/OWNER/NAME` or `datasets/OWNER/NAME`
        self.blobs: dict[str, bytes] = {}
        self.asked: list[str] = []

    def add(self, name: str, folder: Path, private: bool = False) -> None:
        "Serve a folder."
        files = {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
        self.repos[name] = Repo(private, files, 1)


class Handler(BaseHTTPRequestHandler):
    "One request."

    protocol_version, store, url = "HTTP/1.1", Store(), ""

    def log_message(self, *args: Any) -> None:
        pass

    def answer(self, status: int, body: Any = b"", **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        for key, value in ({"Content-Length": str(len(data)), "Content-Type": kind} | headers).items():
            self.send_header(key.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    @property
    def may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def repo(self, match: re.Match) -> tuple[str, Repo | None]:
        "The repository of an address; a private one only for its owner."
        name = f"{match['kind'] or 'models'}/{match['id']}"
        found = self.store.repos.get(name)
        return name, None if found and found.private and not self.may_write else found

    # Reading

    def do_GET(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.store.asked.append(f"{self.command} {path}")
        for pattern, act in (
            (rf"/api/{REPO}(?:/revision/[^/]+)?", self.info),
            (rf"/api/{REPO}/tree/[^/]+/?(?P<path>.*)", self.tree),
            (rf"/{REPO}/resolve/[^/]+/(?P<path>.+)", self.resolve),
        ):
            if match := re.fullmatch(pattern, path):
                name, repo = self.repo(match)
                if repo is None:
                    return self.answer(401, {"error": f"no {name}"}, X_Error_Code="RepoNotFound")
                return act(match, repo)
        self.answer(404, {"error": f"no {path}"})

    do_HEAD = do_GET

    def info(self, match: re.Match, repo: Repo) -> None:
        files = [{"rfilename": name} for name in sorted(repo.files)]
        facts = {"id": match["id"], "sha": repo.sha, "private": repo.private, "siblings": files, "tags": []}
        self.answer(200, facts | ({"cardData": repo.card} if repo.card else {}))

    def tree(self, match: re.Match, repo: Repo) -> None:
        folder = f"{match['path'].rstrip('/')}/".lstrip("/")
        inside = [name for name in repo.files if name.startswith(folder)]
        if not inside:
            return self.answer(404, {"error": "none"}, X_Error_Code="EntryNotFound")
        files = {name: len(repo.files[name]) for name in inside if "/" not in name[len(folder) :]}
        folders = {folder + name[len(folder) :].partition("/")[0] for name in inside if name not in files}
        rows = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in files.items()]
        rows += [{"type": "directory", "path": name, "size": 0, "oid": "0" * 40} for name in sorted(folders)]
        self.answer(200, rows)

    def resolve(self, match: re.Match, repo: Repo) -> None:
        if (data := repo.files.get(match["path"])) is None:
            return self.answer(404, X_Error_Code="EntryNotFound", X_Repo_Commit=repo.sha)
        known = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X_Repo_Commit": repo.sha}
        part = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if part is None:
            return self.answer(200, data, **known)
        start, end = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        self.answer(206, data[start : end + 1], Content_Range=f"bytes {start}-{end}/{len(data)}", **known)

    # Writing

    def do_POST(self) -> None:
        path, data = unquote(self.path.partition("?")[0]), self.body()
        self.store.asked.append(f"{self.command} {path}")
        if path == "/api/validate-yaml":
            return self.validate(json.loads(data))
        if not self.may_write:
            return self.answer(401, {"error": "Invalid credentials in Authorization header"})
        if path == "/api/repos/create":
            return self.create(json.loads(data))
        for pattern, act in (
            (rf"/api/{REPO}/preupload/main", self.preupload),
            (rf"/api/{REPO}/commit/main", self.commit),
            (rf"/{REPO}\.git/info/lfs/objects/batch", self.batch),
        ):
            if match := re.fullmatch(pattern, path):
                name, repo = self.repo(match)
                return self.answer(404, X_Error_Code="RepoNotFound") if repo is None else act(name, repo, data)
        self.answer(404, {"error": f"no {path}"})

    def validate(self, asked: dict[str, Any]) -> None:
        "As the Hub does for licences and languages."
        text = asked["content"]
        match = re.match(r"---\n(.*?)\n---", text, flags=re.DOTALL)
        metadata = yaml.safe_load(match[1]) if match else {}
        wrong = [] if isinstance(metadata.get("language", []), list) else ['"language" must be a list']
        wrong += ["license_name is required"] * (metadata.get("license") == "other" and not metadata["license_name"])
        self.answer(400 if wrong else 200, {"errors": [{"message": m} for m in wrong], "warnings": []})

    def create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('type') or 'model'}s/{asked['organization']}/{asked['name']}"
        url = f"{self.url}/{name.removeprefix('models/')}"
        if asked["organization"] == "others":
            return self.answer(403, {"error": "You don't have the rights to create a model under others"})
        if name in self.store.repos:
            return self.answer(409, {"error": "You already created this model repo", "url": url})
        self.store.repos[name] = Repo(asked.get("visibility") == "private" or bool(asked.get("private")))
        self.answer(200, {"url": url, "id": name.partition("/")[2], "name": name.partition("/")[2]})

    def preupload(self, name: str, repo: Repo, data: bytes) -> None:
        large = ("*.safetensors", "tokenizer.json", "*.model", "*.zst")
        self.answer(200, {"files": [self.mode(one, large) for one in json.loads(data)["files"]]})

    def mode(self, one: dict[str, Any], large: tuple[str, ...]) -> dict[str, Any]:
        kind = "lfs" if any(fnmatch.fnmatch(one["path"], pattern) for pattern in large) else "regular"
        return {"path": one["path"], "uploadMode": kind, "shouldIgnore": False}

    def batch(self, name: str, repo: Repo, data: bytes) -> None:
        asked = json.loads(data)["objects"]
        actions = [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.store.blobs
                else {"actions": {"upload": {"href": f"{self.url}/blobs/{one['oid']}"}}}
            )
            for one in asked
        ]
        self.answer(200, {"transfer": "basic", "objects": actions})

    def do_PUT(self) -> None:
        oid, data = self.path.rpartition("/")[2], self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            return self.answer(400, {"error": "checksum"})
        self.store.blobs[oid] = data
        self.answer(200)

    def commit(self, name: str, repo: Repo, data: bytes) -> None:
        for line in map(json.loads, data.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                repo.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repo.files[value["path"]] = self.store.blobs[value["oid"]]
        repo.commits += 1
        url = f"{self.url}/{name.removeprefix('models/')}/commit/{repo.sha}"
        self.answer(200, {"success": True, "commitOid": repo.sha, "commitUrl": url})


@contextmanager
def hub_server() -> Iterator[tuple[str, Store]]:
    "The address of a server, and what it stores."
    store = Store()
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        server.RequestHandlerClass = type("Handler", (Handler,), {"store": store, "url": url})
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield url, store
        server.shutdown()
