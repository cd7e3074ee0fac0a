"""The Hub on the loopback address: as much of its protocol as its clients speak, in memory, misbehaving as told.

Without Xet (HF_HUB_DISABLE_XET=1): large files are LFS objects.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

from tests.fileserver import LoopbackHandler, LoopbackServer, flipped, running

LARGE = 10_000_000
DATE = "2026-11-23T00:00:00.000Z"


class Request(NamedTuple):
    """A request as it came: what it is for ("GET resolve"), the Range it asked for, the token it showed."""

    kind: str
    path: str
    range: str | None
    token: str | None


@dataclass(frozen=True)
class File:
    """A file of a commit; of an LFS file, ``claimed`` is the SHA-256 that the client gave with it."""

    content: bytes
    claimed: str | None = None

    @cached_property
    def sha1(self):
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.claimed}\nsize {len(self.content)}\n"
        kept = pointer.encode() if self.claimed else self.content
        return hashlib.sha1(b"blob %d\0" % len(kept) + kept).hexdigest()

    @property
    def known_by(self):
        """What the Hub calls it: in an ETag, in the name of a cached file, in the answer to a preupload."""
        return self.claimed or self.sha1


@dataclass
class Repository:
    """``commits`` are (id, files), oldest first; ``readers`` the tokens that a gate lets in, None without a gate."""

    private: bool = False
    readers: set | None = None
    commits: list = field(default_factory=list)
    tags: dict = field(default_factory=dict)

    def add(self, files):
        content = [(name, file.known_by) for name, file in sorted(files.items())]
        oid = hashlib.sha1(repr((len(self.commits), content)).encode()).hexdigest()
        self.commits.append((oid, dict(files)))
        return oid

    def commit(self, revision):
        """(Id, files) of a branch, tag or id."""
        oid = self.tags.get(revision, self.commits[-1][0] if revision == "main" else revision)
        return next((commit for commit in self.commits if commit[0] == oid), None)


class HubServer(LoopbackServer):
    """The Hub.

    ``tokens`` maps a good token to the organisations that it may write to; every good token reads what is private.
    ``elsewhere`` sends who asks for an LFS file to "another" server (the same, by its name localhost).

    ``faults`` maps a kind of request ("POST commit", see ``ROUTES``; "GET model.safetensors" for one file) to what goes
    wrong, one a request, in order:

    - an int: the status of the answer, and nothing is done
    - ("drop", n): the connection breaks after n bytes of the answer's body, of a PUT's or POST's own body
    - ("flip", n): byte n of that body arrives inverted
    - "lost": it is done, but the connection breaks before the answer
    - "hold": it waits until ``release`` is set; ``held`` is set meanwhile
    - "silent": it is never answered
    - None: nothing
    """

    def __init__(self, tokens=None, faults=None, elsewhere=False, silent=False):
        super().__init__(HubHandler, silent)
        self.tokens, self.elsewhere = tokens or {}, elsewhere
        self.closing, self.lock = threading.Event(), threading.Lock()
        self.reset()
        self.faults, self.silent = faults or {}, silent

    def reset(self):
        """Empty and well again; what was held goes on, in the past."""
        self.repositories, self.objects, self.requests, self.faults, self.silent = {}, {}, [], {}, False
        self.held, self.release = threading.Event(), threading.Event()

    def publish(self, repo_id, files, tag=None, **how):
        """A commit that adds ``files`` (name -> bytes) to a repository, without a request."""
        repository = self.repositories.setdefault(repo_id, Repository())
        for key, value in how.items():
            setattr(repository, key, value)
        before = repository.commits[-1][1] if repository.commits else {}
        oid = repository.add(before | {name: self.file(name, content) for name, content in files.items()})
        if tag:
            repository.tags[tag] = oid
        return oid

    def file(self, name, content):
        if not is_large(name, len(content)):
            return File(content)
        sha256 = hashlib.sha256(content).hexdigest()
        self.objects[sha256] = content
        return File(content, sha256)

    def files(self, repo_id, revision="main"):
        """Name -> content, of a revision."""
        return {name: file.content for name, file in self.repositories[repo_id].commit(revision)[1].items()}

    def asked(self, *kinds):
        """The requests of these kinds."""
        return [request for request in self.requests if request.kind in kinds]

    def changes(self):
        """The kinds of the requests that were no mere questions."""
        asking = ("GET", "HEAD", "POST yaml")
        return [request.kind for request in self.requests if not request.kind.startswith(asking)]

    def server_close(self):
        self.closing.set()
        self.release.set()
        super().server_close()


def is_large(name, size):
    """Whether a file is an LFS object."""
    return size > LARGE or name.endswith((".safetensors", ".bin"))


ID, REVISION = r"(?P<repo_id>[^/]+/[^/]+)", r"(?P<revision>[^/]+)"
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/repos/create", "create"),
    ("POST", r"/api/validate-yaml", "yaml"),
    ("GET", r"/api/models", "list"),
    ("POST", rf"/api/models/{ID}/preupload/{REVISION}", "preupload"),
    ("POST", rf"/{ID}\.git/info/lfs/objects/batch", "batch"),
    ("PUT GET HEAD", r"/objects/(?P<oid>\w{64})", "object"),
    ("POST", r"/verify", "verify"),
    ("POST", rf"/api/models/{ID}/commit/{REVISION}", "commit"),
    ("GET HEAD", rf"/{ID}/resolve/{REVISION}/(?P<name>.+)", "resolve"),
    ("GET", rf"/api/models/{ID}", "info"),
    ("GET", rf"/api/models/{ID}/revision/{REVISION}", "info"),
    ("GET", rf"/api/models/{ID}/tree/{REVISION}", "tree"),
    ("GET", rf"/api/models/{ID}/refs", "refs"),
    ("GET", rf"/api/models/{ID}/commits/{REVISION}", "commits"),
    ("POST DELETE", rf"/api/models/{ID}/tag/{REVISION}", "tag"),
]
CHANGES = ("PUT", "POST", "DELETE")


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status, message, code=None, **headers):
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **headers}


class Broken(Exception):  # noqa: N818 (the connection is, nothing else)
    """The connection ends here."""


class HubHandler(LoopbackHandler):
    def one_request(self):
        parts = urlsplit(self.path)
        self.query = dict(pair.partition("=")[::2] for pair in unquote(parts.query).split("&") if pair)
        what, found = self.route(parts.path)
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        kind = f"{self.command} {what}"
        self.server.requests.append(Request(kind, unquote(parts.path), self.headers.get("Range"), self.token))
        self.wait_if_silent()
        try:
            self.misbehave(kind, f"{self.command} {found.get('name')}")
            self.body = self.read_body()
            status, body, headers = self.done(what, found)
        except HubError as error:
            body, status, headers = {"error": error.message}, error.status, error.headers
        except (Broken, ConnectionError):
            self.close_connection = True
            return
        if self.lost:
            self.close_connection = True
            return
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        if self.flip_at is not None and self.command == "GET":
            body = flipped(body, self.flip_at)
        self.answer(status, body, headers, self.drop_after)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = one_request  # noqa: N815

    def route(self, path):
        """What a request is for, and the names in its path."""
        for methods, pattern, what in ROUTES:
            match = re.fullmatch(pattern, path)
            if match and self.command in methods.split():
                return what, {key: unquote(value) for key, value in match.groupdict().items()}
        return "unknown", {}

    def done(self, what, found):
        """(Status, body, headers), after what was asked for is done."""
        if self.status:
            raise HubError(self.status, "a fault that a test asked for")
        if what == "unknown":
            raise HubError(404, "no such page")
        with self.server.lock:
            self.check_token(found.get("repo_id"))
            return getattr(self, what)(**found)

    # ---- what goes wrong -------------------------------------------------------------------------------------------

    def misbehave(self, *kinds):
        """Take the next fault of this request, if one was asked for."""
        faults = next((self.server.faults[kind] for kind in kinds if self.server.faults.get(kind)), None)
        fault = faults.pop(0) if faults else None
        kind, where = fault if isinstance(fault, tuple) else (fault, None)
        self.status = fault if isinstance(fault, int) else None
        self.drop_after = where if kind == "drop" else None
        self.flip_at = where if kind == "flip" else None
        self.lost = kind == "lost"
        if kind == "silent":
            self.server.closing.wait()
            raise Broken
        if kind == "hold":
            self.server.held.set()
            self.server.release.wait()

    def read_body(self):
        """What the client sends; as much as arrives before the connection breaks."""
        length = int(self.headers.get("Content-Length", 0))
        if self.headers.get("Transfer-Encoding"):
            raise HubError(411, "a body has a Content-Length")
        if self.drop_after is not None and self.command in CHANGES:
            self.rfile.read(min(length, self.drop_after))
            raise Broken
        body = self.rfile.read(length)
        if len(body) < length:
            raise Broken  # the client died
        return flipped(body, self.flip_at) if self.flip_at is not None and self.command in CHANGES else body

    # ---- who may do what -------------------------------------------------------------------------------------------

    def check_token(self, repo_id):
        tokens = self.server.tokens
        if self.token is not None and self.token not in tokens:
            raise HubError(401, "Invalid credentials in Authorization header")
        if repo_id is None:
            return
        repository = self.server.repositories.get(repo_id)
        if repository is None or (repository.private and self.token is None):
            raise HubError(404 if self.token else 401, "Repository not found", "RepoNotFound")
        if self.command in CHANGES:
            self.check_writer(repo_id.split("/")[0])

    def check_writer(self, organisation):
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        if organisation not in self.server.tokens[self.token]:
            raise HubError(403, f"You don't have the rights to write under the namespace {organisation!r}")

    def commit_of(self, repo_id, revision):
        repository = self.server.repositories[repo_id]
        commit = repository.commit(revision)
        if commit is None:
            raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return repository, *commit

    # ---- accounts and repositories ---------------------------------------------------------------------------------

    def whoami(self):
        if self.token is None:
            raise HubError(401, "Invalid username or password.")
        organisations = [{"name": name} for name in self.server.tokens[self.token]]
        role = {"accessToken": {"displayName": "test", "role": "write" if organisations else "read"}}
        return 200, {"type": "user", "name": "somebody", "orgs": organisations, "auth": role}, {}

    def create(self):
        asked = json.loads(self.body)
        repo_id = f"{asked['organization']}/{asked['name']}"
        self.check_writer(asked["organization"])
        url = {"url": f"{self.server.url}/{repo_id}"}
        if repo_id in self.server.repositories:
            return 409, {"error": "You already created this model repo", **url}, {}
        self.server.publish(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"})
        self.server.repositories[repo_id].private = asked.get("visibility") == "private"
        return 200, url, {}

    def yaml(self):
        return 200, {"errors": [], "warnings": []}, {}

    def list(self):
        author, term = self.query.get("author"), self.query.get("search", "")
        found = [
            self.described(repo_id, "main")
            for repo_id, repository in self.server.repositories.items()
            if author in (None, repo_id.split("/")[0]) and term in repo_id and (self.token or not repository.private)
        ]
        return 200, found, {}

    def info(self, repo_id, revision="main"):
        return 200, self.described(repo_id, revision), {}

    def described(self, repo_id, revision):
        repository, oid, files = self.commit_of(repo_id, revision)
        siblings = []
        for name, file in files.items():
            size, lfs = len(file.content), file.claimed
            blobs = {"size": size, "blobId": file.sha1}
            blobs |= {"lfs": {"sha256": lfs, "size": size, "pointerSize": 134}} if lfs else {}
            siblings.append({"rfilename": name, **(blobs if "blobs" in self.query else {})})
        about = {"private": repository.private, "gated": repository.readers is not None and "manual"}
        about |= {"author": repo_id.split("/")[0], "tags": [], "downloads": 0, "likes": 0, "lastModified": DATE}
        return {"_id": "0" * 24, "id": repo_id, "modelId": repo_id, "sha": oid, "siblings": siblings, **about}

    def tree(self, repo_id, revision):
        _, _, files = self.commit_of(repo_id, revision)
        rows = []
        for name, file in files.items():
            size = len(file.content)
            lfs = {"lfs": {"oid": file.claimed, "size": size, "pointerSize": 134}} if file.claimed else {}
            rows.append({"type": "file", "path": name, "size": size, "oid": file.sha1, **lfs})
        return 200, rows, {}

    def refs(self, repo_id):
        repository, oid, _ = self.commit_of(repo_id, "main")
        tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": o} for n, o in repository.tags.items()]
        main = {"name": "main", "ref": "refs/heads/main", "targetCommit": oid}
        return 200, {"branches": [main], "tags": tags, "converts": []}, {}

    def commits(self, repo_id, revision):
        repository, *commit = self.commit_of(repo_id, revision)
        until = repository.commits[: repository.commits.index(tuple(commit)) + 1]
        about = {"title": "", "message": "", "date": DATE, "authors": []}
        return 200, [{"id": oid, **about} for oid, _ in reversed(until)], {}

    def tag(self, repo_id, revision):
        tags = self.server.repositories[repo_id].tags
        if self.command == "DELETE":
            if tags.pop(revision, None) is None:
                raise HubError(404, "Tag not found", "RevisionNotFound")
            return 200, {}, {}
        name = json.loads(self.body)["tag"]
        if name in tags:
            raise HubError(409, f"Tag reference exists already: {name}")
        tags[name] = self.commit_of(repo_id, revision)[1]
        return 200, {}, {}

    # ---- files up --------------------------------------------------------------------------------------------------

    def preupload(self, repo_id, revision):
        _, _, files = self.commit_of(repo_id, revision)
        modes = []
        for asked in json.loads(self.body)["files"]:
            mode = "lfs" if is_large(asked["path"], asked["size"]) else "regular"
            there = {"oid": files[asked["path"]].known_by} if asked["path"] in files else {}
            modes.append({"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, **there})
        return 200, {"files": modes}, {}

    def batch(self, repo_id):
        objects = []
        for asked in json.loads(self.body)["objects"]:
            up = {"upload": {"href": f"{self.server.url}/objects/{asked['oid']}", "header": {}}}
            up["verify"] = {"href": f"{self.server.url}/verify"}
            there = asked["oid"] in self.server.objects
            objects.append({"oid": asked["oid"], "size": asked["size"], **({} if there else {"actions": up})})
        return 200, {"transfer": "basic", "objects": objects}, {"Content-Type": "application/vnd.git-lfs+json"}

    def verify(self):
        asked = json.loads(self.body)
        if len(self.server.objects.get(asked["oid"], b"")) != asked["size"]:
            raise HubError(422, "the object is not there, or has another size")
        return 200, {}, {}

    def commit(self, repo_id, revision):
        repository, parent, files = self.commit_of(repo_id, revision)
        files = dict(files)
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "header" and value.get("parentCommit", parent) != parent:
                raise HubError(412, "A commit has happened since. Please refresh and try again.")
            if key == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]))
            elif key == "lfsFile":
                if value["oid"] not in self.server.objects:
                    raise HubError(400, f"the LFS object {value['oid']} was not uploaded")
                files[value["path"]] = File(self.server.objects[value["oid"]], value["oid"])
            elif key == "deletedFile":
                del files[value["path"]]
        oid = repository.add(files)
        return 200, {"success": True, "commitOid": oid, "commitUrl": f"{self.server.url}/{repo_id}/commit/{oid}"}, {}

    # ---- files down ------------------------------------------------------------------------------------------------

    def resolve(self, repo_id, revision, name):
        repository, oid, files = self.commit_of(repo_id, revision)
        if repository.readers is not None and self.token not in repository.readers:
            raise HubError(403 if self.token else 401, f"Access to model {repo_id} is restricted", "GatedRepo")
        commit = {"X-Repo-Commit": oid}
        if name not in files:
            raise HubError(404, "Entry not found", "EntryNotFound", **commit)
        file = files[name]
        if not file.claimed:
            return self.part(file.content, f'"{file.sha1}"', commit)
        linked = {"X-Linked-Etag": f'"{file.claimed}"', "X-Linked-Size": str(len(file.content)), **commit}
        if self.server.elsewhere:
            there = f"http://localhost:{self.server.server_port}/objects/{file.claimed}"
            return 302, b"", {"Location": there, **linked}
        return self.part(file.content, f'"{file.claimed}"', linked)

    def object(self, oid):
        """The store of LFS objects, which has no tokens, and does not look at what it is given."""
        if self.command == "PUT":
            self.server.objects[oid] = self.body
            return 200, b"", {}
        return self.part(self.server.objects[oid], f'"{oid}"', {})

    def part(self, content, etag, headers):
        """The content from the byte that is asked for on."""
        start = self.range_start(len(content), etag)
        if start is None:
            raise HubError(416, "nothing behind that")
        if start:
            headers = {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}", **headers}
        return 206 if start else 200, content[start:], {"ETag": etag, "Accept-Ranges": "bytes", **headers}


def hub(*args, **kwargs):
    """A ``HubServer`` while the block runs."""
    return running(HubServer(*args, **kwargs))
