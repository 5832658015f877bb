"""A Hugging Face Hub in this process: its HTTP interface, as far as runs need it, over a dictionary of files."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_secret"


class FakeHub:
    """Repositories by name and revision: `files["ada/flow", "main"]` has the content of each path."""

    def __init__(self):
        self.files = {}
        self.tokens = []  # what the requests to write carried

    def sha(self, repository, revision):
        content = repr(sorted((k, hashlib.sha256(v).digest()) for k, v in self.files[repository, revision].items()))
        return hashlib.sha1(f"{repository}{content}".encode()).hexdigest()

    def find(self, repository, revision):
        """The revision's files and commit; None if there is no such revision."""
        for name, own in self.files:
            if name == repository and revision in (own, self.sha(name, own)):
                return self.files[name, own], self.sha(name, own)
        return None


def handler_of(hub):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *words):
            pass

        def answer(self, status, body=b"", **headers):
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def json(self, value):
            self.answer(200, json.dumps(value).encode(), Content_Type="application/json")

        def missing(self, code):
            self.answer(404, b"{}", X_Error_Code=code, X_Error_Message=code)

        def do_GET(self):
            path = self.path.partition("?")[0]
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?(?:/.*)?", path):
                return self.model(found[1], found[2], found[3] or "main")
            if found := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
                return self.file(*found.groups())
            return self.missing("EntryNotFound")

        do_HEAD = do_GET

        def model(self, repository, what, revision):
            if not any(name == repository for name, _ in hub.files):
                return self.missing("RepoNotFound")
            if (found := hub.find(repository, revision)) is None:
                return self.missing("RevisionNotFound")
            files, sha = found
            if what == "tree":
                blobs = {name: hashlib.sha1(content).hexdigest() for name, content in files.items()}
                return self.json(
                    [{"type": "file", "path": k, "size": len(files[k]), "oid": oid} for k, oid in blobs.items()]
                )
            return self.json({"id": repository, "sha": sha, "siblings": [{"rfilename": name} for name in files]})

        def file(self, repository, revision, name):
            files, sha = hub.find(repository, revision) or ({}, "")
            if name not in files:
                return self.missing("EntryNotFound")
            etag = f'"{hashlib.sha1(files[name]).hexdigest()}"'
            return self.answer(200, files[name], ETag=etag, X_Repo_Commit=sha, Accept_Ranges="none")

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
            hub.tokens.append(token)
            if token != TOKEN:
                return self.answer(401, b"{}", X_Error_Message="Invalid credentials")
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
                hub.files.setdefault((name, "main"), {})
                return self.json({"url": f"http://{self.headers['Host']}/{name}", "name": name})
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/branch/([^/]+)", self.path):
                hub.files.setdefault(found.groups(), {})
                return self.json({})
            if found := re.fullmatch(r"/api/models/[^/]+/[^/]+/preupload/.+", self.path):
                asked = json.loads(body)["files"]
                return self.json(
                    {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
                )
            if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/?]+).*", self.path):
                files = hub.files[found.groups()]
                for line in map(json.loads, body.decode().splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                sha = hub.sha(*found.groups())
                address = f"http://{self.headers['Host']}/{found[1]}/commit/{sha}"
                return self.json({"success": True, "commitOid": sha, "commitUrl": address})
            if self.path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            return self.missing("EntryNotFound")

    return Handler


@contextmanager
def serving():
    """A hub and its address."""
    hub = FakeHub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(hub))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
