"""Tasks that make something, done by a real SWOP process that is killed in the middle."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from swarm_hpc.config import ExecutorKind, SwopConfig
from swarm_hpc.records import TaskState, TaskType
from swarm_hpc.swop import attended
from tests.swop.conftest import RUNNER, Site, ended, enrolled, make_task
from tests.swop.lab import Project, eventually, log_of, swop_process

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


class Server:
    """Serves one file over HTTP, when it is let go; counts who asked."""

    def __init__(self) -> None:
        self.num_asked = 0
        self.go = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.num_asked += 1
                outer.go.wait(60)
                self.send_response(200)
                self.send_header("Content-Length", "3")
                self.end_headers()
                self.wfile.write(b"abc")

            def log_message(self, format: str, *args: object) -> None:
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.http.serve_forever)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.http.server_port}/data.csv"

    def stop(self) -> None:
        self.go.set()
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def server() -> Iterator[Server]:
    one = Server()
    yield one
    one.stop()


@pytest.fixture
def config(site: Site, tmp_path: Path) -> Iterator[SwopConfig]:
    config = site.config(profile=str(Project(tmp_path / "project").profile))
    config.executor = ExecutorKind.LOCAL
    config.container.image_dir = str(tmp_path / "images")
    yield config
    for slot in Path(config.state_dir).glob("runs/*/slot-*"):
        attended.cancel(slot)


def content(url: str) -> list[str]:
    return ["ContentType: BUILDCONTENT", "OpsList:", "- Operation: DOWNLOAD", f"  Target: {url}", "  Options: []"]


async def test_a_download_outlives_a_killed_swop_and_is_made_once(
    site: Site, config: SwopConfig, server: Server
) -> None:
    ada = await site.operator()
    await make_task(ada, "fetch", content(server.url), TaskType.MAKE_SWARM_USER_CONTENT)
    with swop_process(config) as process:
        await enrolled(ada)
        await ada.assign(RUNNER, "fetch")
        await eventually(lambda: server.num_asked == 1)
        os.kill(process.pid, signal.SIGKILL)
    with swop_process(config):
        server.go.set()
        runner = await ended(ada)
    assert runner.state is TaskState.COMPLETE, log_of(config)
    assert server.num_asked == 1
    assert (Path(config.state_dir) / "volumes" / "outcome" / "data.csv").read_bytes() == b"abc"


async def test_a_reset_ends_a_download(site: Site, config: SwopConfig, server: Server) -> None:
    ada = await site.operator()
    await make_task(ada, "fetch", content(server.url), TaskType.MAKE_SWARM_USER_CONTENT)
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "fetch")
        await eventually(lambda: server.num_asked == 1)
        await ada.reset_taskrunner(RUNNER)
        (slot,) = Path(config.state_dir).glob("runs/*/slot-*")
        await eventually(lambda: attended.poll(slot).state.is_over)
        server.go.set()
        await ada.assign(RUNNER, "fetch")
        assert (await ended(ada)).state is TaskState.COMPLETE, log_of(config)


async def test_work_that_cannot_be_done_is_told_with_its_reason(site: Site, config: SwopConfig) -> None:
    ada = await site.operator()
    await make_task(ada, "fetch", content("file:///no/such/data.csv"), TaskType.MAKE_SWARM_USER_CONTENT)
    with swop_process(config):
        await enrolled(ada)
        await ada.assign(RUNNER, "fetch")
        (mine,) = (await ended(ada)).peers
    assert mine.state is TaskState.ERROR
    assert "/no/such/data.csv" in mine.text.splitlines()[0], mine.text
