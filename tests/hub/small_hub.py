"""A Hub on the loopback address: what `huggingface_hub` asks of one when it pushes and pulls a model, and no more."""

import base64
import hashlib
import json
import re
import sys
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Commit:
    """What a repository held after a push, and what that push wrote or deleted."""

    files: dict[str, bytes]
    changed: list[str] = field(default_factory=list)
    message: str = "initial commit"

    @property
    def oid(self) -> str:
        listing = [(path, git_oid(content)) for path, content in sorted(self.files.items())]
        return hashlib.sha1(json.dumps([listing, self.message]).encode()).hexdigest()


class SmallHub(ThreadingHTTPServer):
    """
    Serves at `url`. `repos` holds the commits of each repository by its id, oldest first, `objects` the large files
    by their sha256, `private` the repositories that were made private, `uploaded` the sha256 of each upload of a large
    file, in their order, `unknown` the requests that it has no answer to, and `errors` what went wrong in answering
    the others.

    Requests whose "METHOD /path" starts with what `break_at` says (a regular expression) are broken off, until it is
    None again: `passes` of them are let through first, and then half of the body is read and the connection dropped.
    With `lose_answer`, the request is carried out and the connection dropped before the answer. `broken` counts.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.repos: dict[str, list[Commit]] = {}
        self.objects: dict[str, bytes] = {}
        self.private: set[str] = set()
        self.uploaded: list[str] = []
        self.unknown: list[str] = []
        self.errors: list[BaseException] = []
        self.break_at: str | None = None
        self.passes = 0
        self.lose_answer = False
        self.broken = 0
        self.lock = threading.Lock()

    def breaks_off(self, request: str) -> bool:
        """Whether this one does."""
        if self.break_at is None or not re.match(self.break_at, request):
            return False
        with self.lock:
            self.passes -= 1
            self.broken += self.passes < 0
            return self.passes < 0

    def handle_error(self, request, client_address):
        """The connection is dropped. A client that went away is no error of ours."""
        error = sys.exc_info()[1]
        if not isinstance(error, ConnectionError):
            self.errors.append(error)


def git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def is_large(path: str) -> bool:
    """Stored as an LFS object, as on the Hub."""
    return path.endswith(".safetensors")


class NotThere(Exception):
    """Answered with status 404 and this code, by which the client tells what is missing."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: SmallHub

    def handle_one(self) -> None:
        """Finds the endpoint by the method and the path, and answers with what it gives."""
        path = self.path.partition("?")[0]
        request = f"{self.command} {path}"
        length = int(self.headers.get("Content-Length", 0))
        breaks_off = self.server.breaks_off(request)
        if breaks_off and not self.server.lose_answer:
            self.rfile.read(length // 2)
            self.close_connection = True
            return
        self.body = self.rfile.read(length)
        for pattern, endpoint in ENDPOINTS:
            if found := re.fullmatch(pattern, request):
                try:
                    with self.server.lock:
                        status, content, headers = endpoint(self, *found.groups())
                except NotThere as error:
                    status, content, headers = 404, {"error": str(error)}, {"X-Error-Code": str(error)}
                break
        else:
            self.server.unknown.append(request)
            status, content, headers = 501, {"error": f"this Hub knows no {request}"}, {}
        if breaks_off:
            self.close_connection = True
        else:
            self.answer(status, content, headers)

    do_GET = do_HEAD = do_POST = do_PUT = handle_one

    def answer(self, status: int, content: dict | list | bytes, headers: dict[str, str]) -> None:
        content = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *args):
        pass

    # The endpoints: each gives status, content and headers.

    def create(self):
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        status = 409 if repo in self.server.repos else 200
        if status == 200:
            self.server.repos[repo] = [Commit({})]
            if asked.get("private") or asked.get("visibility") == "private":
                self.server.private.add(repo)
        return status, {"url": f"{self.server.url}/{repo}"}, {}

    def validate_card(self):
        return 200, {"warnings": [], "errors": []}, {}

    def info(self, repo, revision="main"):
        commit = self.commit_of(repo, revision)
        siblings = [{"rfilename": path} for path in commit.files]
        is_private = repo in self.server.private
        return 200, {"id": repo, "sha": commit.oid, "private": is_private, "siblings": siblings}, {}

    def tree(self, repo, revision, folder=None):
        """All files are flat here, so that no folder is ever found."""
        if folder is not None:
            raise NotThere("EntryNotFound")
        files = self.commit_of(repo, revision).files
        return 200, [entry(path, content) for path, content in sorted(files.items())], {}

    def preupload(self, repo, revision):
        """How each file is to be sent, and what is there in its place."""
        files = self.commit_of(repo, revision).files
        answers = []
        for asked in json.loads(self.body)["files"]:
            path = asked["path"]
            there = files.get(path)
            oid = None if there is None else (sha256(there) if is_large(path) else git_oid(there))
            mode = "lfs" if is_large(path) else "regular"
            answers.append({"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return 200, {"files": answers}, {}

    def large_files(self, repo):
        """Where to send the large files that are not there yet."""
        objects = [{"oid": asked["oid"], "size": asked["size"]} for asked in json.loads(self.body)["objects"]]
        for asked in objects:
            if asked["oid"] not in self.server.objects:
                asked["actions"] = {"upload": {"href": f"{self.server.url}/objects/{asked['oid']}"}}
        return 200, {"transfer": "basic", "objects": objects}, {}

    def upload(self, oid):
        assert sha256(self.body) == oid, "not the file that was announced"
        self.server.objects[oid] = self.body
        self.server.uploaded.append(oid)
        return 200, {}, {}

    def commit(self, repo, revision):
        """All of it or nothing: the lines are read before anything is kept."""
        header, *lines = [json.loads(line) for line in self.body.splitlines()]
        written, deleted = {}, set()
        for line in lines:
            value = line["value"]
            if line["key"] == "deletedFile":
                deleted.add(value["path"])
            elif line["key"] == "file":
                written[value["path"]] = base64.b64decode(value["content"])
            else:
                assert line["key"] == "lfsFile", line["key"]
                written[value["path"]] = self.server.objects[value["oid"]]
        before = self.commit_of(repo, revision).files
        files = {path: content for path, content in before.items() if path not in deleted} | written
        commit = Commit(files, sorted(deleted | written.keys()), header["value"]["summary"])
        self.server.repos[repo].append(commit)
        return 200, {"commitUrl": f"{self.server.url}/{repo}/commit/{commit.oid}", "commitOid": commit.oid}, {}

    def file(self, repo, revision, path):
        commit = self.commit_of(repo, revision)
        if path not in commit.files:
            code = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit.oid}
            return 404, {"error": f"no {path}"}, code
        content = commit.files[path]
        oid = sha256(content) if is_large(path) else git_oid(content)
        return 200, content, {"ETag": f'"{oid}"', "X-Repo-Commit": commit.oid}

    def commit_of(self, repo: str, revision: str) -> Commit:
        if repo not in self.server.repos:
            raise NotThere("RepoNotFound")
        commits = self.server.repos[repo]
        for commit in reversed(commits):
            if revision in ("main", commit.oid):
                return commit
        raise NotThere("RevisionNotFound")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def entry(path: str, content: bytes) -> dict:
    listed = {"type": "file", "path": path, "size": len(content), "oid": git_oid(content)}
    if is_large(path):
        listed["lfs"] = {"oid": sha256(content), "size": len(content), "pointerSize": 134}
    return listed


REPO = "([^/]+/[^/]+)"
ENDPOINTS = [
    ("POST /api/repos/create", Handler.create),
    ("POST /api/validate-yaml", Handler.validate_card),
    (f"GET /api/models/{REPO}", Handler.info),
    (f"GET /api/models/{REPO}/revision/([^/]+)", Handler.info),
    (f"GET /api/models/{REPO}/tree/([^/]+)", Handler.tree),
    (f"GET /api/models/{REPO}/tree/([^/]+)/(.+)", Handler.tree),
    (f"POST /api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    (rf"POST /{REPO}\.git/info/lfs/objects/batch", Handler.large_files),
    ("PUT /objects/(.+)", Handler.upload),
    (f"POST /api/models/{REPO}/commit/([^/]+)", Handler.commit),
    (f"(?:HEAD|GET) /{REPO}/resolve/([^/]+)/(.+)", Handler.file),
]
