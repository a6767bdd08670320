"""A registry of container images on loopback with one image of one file: the part of OCI's protocol that fetching uses
(https://github.com/opencontainers/distribution-spec, 3.2)."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Final

REPOSITORY: Final = "team/env"
TAG: Final = "2.3"
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+gzip"


class Registry:
    """It hands out the layer when it is let go, and counts how often it was asked for it."""

    def __init__(self) -> None:
        self.num_layers = 0
        self.go = threading.Event()
        self._blobs: dict[str, bytes] = {}
        self._manifest, self._layer = self._image()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                outer._answer(self)

            do_HEAD = do_GET

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self._http.server_port}"

    def stop(self) -> None:
        self.go.set()
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def _image(self) -> tuple[str, str]:
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as file:
            for name in ("bin", "etc", "tmp"):
                folder = tarfile.TarInfo(name)
                folder.type, folder.mode = tarfile.DIRTYPE, 0o755
                file.addfile(folder)
            info = tarfile.TarInfo("hello")
            info.size = 5
            file.addfile(info, io.BytesIO(b"hello"))
        layer = gzip.compress(data.getvalue(), mtime=0)
        diff = f"sha256:{hashlib.sha256(data.getvalue()).hexdigest()}"
        root = {"type": "layers", "diff_ids": [diff]}
        config = {"architecture": "amd64", "os": "linux", "config": {}, "rootfs": root}
        stored = self._descriptor(layer, _LAYER)
        manifest = {
            "schemaVersion": 2,
            "mediaType": _MANIFEST,
            "config": self._descriptor(json.dumps(config).encode(), _CONFIG),
            "layers": [stored],
        }
        return self._descriptor(json.dumps(manifest).encode(), _MANIFEST)["digest"], stored["digest"]

    def _descriptor(self, data: bytes, kind: str) -> dict[str, Any]:
        digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
        self._blobs[digest] = data
        return {"mediaType": kind, "digest": digest, "size": len(data)}

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        last = request.path.rpartition("/")[2]
        digest = self._manifest if last == TAG else last
        data = self._blobs.get(digest, b"")
        is_there = request.path == "/v2/" or (request.path.startswith(f"/v2/{REPOSITORY}/") and bool(data))
        if digest == self._layer and request.command == "GET":
            self.num_layers += 1
            self.go.wait(60)
        request.send_response(200 if is_there else 404)
        request.send_header("Content-Type", _MANIFEST if digest == self._manifest else "application/octet-stream")
        request.send_header("Docker-Content-Digest", digest)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        if request.command == "GET":
            request.wfile.write(data)
