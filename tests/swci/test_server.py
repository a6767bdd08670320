"""The web mode over real mutual TLS, on a fake SN: HPE's requests, ours, sessions, and bodies of any kind."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from swarm_hpc.config import SwciWebConfig
from swarm_hpc.errors import ConfigError, NotAuthorized, NotFound, TimedOut
from swarm_hpc.records import Kind
from swarm_hpc.swci.commands import COMMANDS
from swarm_hpc.swci.server import WebApi
from swarm_hpc.swci.session import Session
from swarm_hpc.transport import server
from swarm_hpc.transport.client import ApiClient, expect_kind
from tests.swci.conftest import ADDRESS, BUILD_TASK, swci_config
from tests.swci.fake_sn import FakeSn


class Web:
    """A SWCI in web mode, and requests by nodes of any name."""

    def __init__(self, consortium, stack: AsyncExitStack, folder, **web) -> None:
        self.consortium, self.stack, self.folder = consortium, stack, folder
        self.sn = FakeSn()
        self.opened: list[Session] = []
        self.api = WebApi(self._open, "alpha", SwciWebConfig(**web))
        self.address = ""

    def _open(self) -> Session:
        self.opened.append(Session(swci_config(self.folder, sn=ADDRESS), lambda address, s: self.sn, closed=True))
        return self.opened[-1]

    async def start(self) -> None:
        app = server.application()
        self.api.add_routes(app)
        identity = self.consortium.identity("alpha/swci/web")
        port = await self.stack.enter_async_context(server.serve(app, identity, "127.0.0.1", 0))
        self.stack.push_async_callback(self.api.aclose)
        self.address = f"127.0.0.1:{port}"

    async def __call__(self, command: str, node: str = "alpha/swci/ada"):
        """Our form: the answer's value, or the error."""
        identity = self.consortium.identity(node)
        connection = swci_config(self.folder).connection
        async with ApiClient(identity, self.address, expect=expect_kind(Kind.SWCI), connection=connection) as client:
            return await client.call("POST", "/v1/commands", body={"command": command}, retry=False)

    async def raw(self, method: str, path: str, node: str = "alpha/swci/ada", **what) -> tuple[int, str]:
        """Status and text of any request."""
        context = self.consortium.identity(node).client_context(expect_kind(Kind.SWCI))
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
            session.request(method, f"https://{self.address}{path}", **what) as answer,
        ):
            return answer.status, await answer.text()

    async def hpe(self, command: str) -> list[str]:
        status, text = await self.raw("POST", "/exec", params={"cmd": command})
        assert status == 200
        return json.loads(text)["CONTENT"]


@pytest.fixture
async def start_web(consortium, tmp_path, monkeypatch):
    monkeypatch.setattr(server, "_STOP_GRACE_S", 0.1)
    async with AsyncExitStack() as stack:

        async def start(**web_settings) -> Web:
            made = Web(consortium, stack, tmp_path, **web_settings)
            await made.start()
            return made

        yield start


@pytest.fixture
async def web(start_web) -> Web:
    return await start_web()


async def test_hpes_request_is_answered_by_texts_and_a_failure_is_one_of_them(web) -> None:
    assert (await web.hpe("list contexts"))[1] == f"default,{ADDRESS},YES"
    assert await web.hpe("get task info nothing") == ["ERROR task nothing: no such task"]
    assert (await web.hpe("lst nodes"))[0].startswith("ERROR 'lst nodes' is not a command; did you mean LIST NODES?")
    assert (await web.hpe(""))[0].startswith("ERROR there is no command")
    assert await web.hpe("create contract a%2Fb") == [
        "ERROR contract: 'a%2Fb': use letters, digits, '.', '_', '-', at most 63: CREATE CONTRACT <contract : name>"
    ]


async def test_a_task_file_is_uploaded_and_registered(web) -> None:
    form = aiohttp.FormData()
    form.add_field("other", "x")
    form.add_field("file", BUILD_TASK, filename="build.yaml")
    status, text = await web.raw("POST", "/uploadTaskDef", data=form)
    assert (status, json.loads(text)) == (200, {"CONTENT": ["File Uploaded : build.yaml"]})
    assert (web.folder / "build.yaml").read_text() == BUILD_TASK
    assert await web.hpe("create task from build.yaml") == ["Task Registered : build"]


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "", "..", "/etc/x"])
async def test_an_upload_cannot_leave_the_folder(web, name) -> None:
    head = f'--x\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'
    kind = {"Content-Type": "multipart/form-data; boundary=x"}
    _, text = await web.raw("POST", "/uploadTaskDef", data=f"{head}x\r\n--x--\r\n".encode(), headers=kind)
    assert "ERROR" in text
    assert list(web.folder.iterdir()) == []


async def test_uploads_have_a_form_and_a_size(web) -> None:
    assert (await web.raw("POST", "/uploadTaskDef", data=b"x"))[0] == 400
    form = aiohttp.FormData()
    form.add_field("file", "x" * 300_000, filename="big")
    status, text = await web.raw("POST", "/uploadTaskDef", data=form)
    assert (status, json.loads(text)["detail"]) == (400, "a task file has at most 262144 bytes")


async def test_our_request_is_answered_by_lines_and_data_and_fails_by_name(web) -> None:
    answer = await web("list tasks")
    assert answer["lines"][0] == "Name,Type,Author,Finalized,Prereq,Site"
    assert answer["data"][0]["name"] == "ROOTTASK"
    with pytest.raises(NotFound, match="no such task"):
        await web("get task body nothing")
    with pytest.raises(ConfigError, match="did you mean"):
        await web("lst nodes")
    status, text = await web.raw("GET", "/v1/commands")
    assert status == 200
    assert [one["method"] for one in json.loads(text)] == [one.name for one in COMMANDS]


async def test_what_a_command_says_meanwhile_comes_before_its_result(web) -> None:
    web.sn.down = 0
    answer = await web("wait for ip 10.0.0.1")
    assert answer["lines"] == ["WAITING FOR API SERVER : 10.0.0.1:30304", "API Server is UP!"]


async def test_only_operators_and_pages_of_the_own_site_give_commands(web) -> None:
    assert (await web("pwd", "alpha/ui/ui"))["lines"]
    for node in ("beta/swci/eve", "alpha/sl/one", "alpha/swop/one", "beta/sn/sn"):
        with pytest.raises(NotAuthorized):
            await web("pwd", node)
        for method, path in (("GET", "/v1/commands"), ("POST", "/exec?cmd=pwd"), ("POST", "/uploadTaskDef")):
            assert (await web.raw(method, path, node))[0] == 403
    assert len(web.opened) == 1


async def test_each_certificate_has_a_session_of_its_own(web) -> None:
    await web("create context other with ip 10.0.0.9")
    await web("switch context other")
    assert (await web("get context info"))["data"]["name"] == "other"
    assert (await web("get context info", "alpha/swci/bob"))["data"]["name"] == "default"
    await web("exit")
    assert len((await web("list contexts"))["data"]) == 1


async def test_after_exit_on_failure_a_failing_command_ends_the_session(web) -> None:
    await web("create context other with ip 10.0.0.9")
    await web("exit on failure")
    with pytest.raises(NotFound):
        await web("get task info nothing")
    assert len((await web("list contexts"))["data"]) == 1


async def test_the_session_that_was_idle_longest_makes_room(start_web) -> None:
    web = await start_web(max_sessions=2)
    for node in ("alpha/swci/ada", "alpha/swci/bob"):
        await web("create context other with ip 10.0.0.9", node)
    await web("pwd", "alpha/swci/ada")
    await web("pwd", "alpha/swci/eve")
    assert len((await web("list contexts", "alpha/swci/ada"))["data"]) == 2
    assert len((await web("list contexts", "alpha/swci/bob"))["data"]) == 1


async def test_sessions_at_work_are_not_thrown_out(start_web) -> None:
    web = await start_web(max_sessions=1)
    resting = asyncio.create_task(web("sleep 1000"))
    while not web.opened:
        await asyncio.sleep(0)
    web.opened[0].is_over = False
    while not next(iter(web.api._seats.values())).num_running:
        await asyncio.sleep(0)
    with pytest.raises(ConfigError, match="sessions are at work"):
        await web("pwd", "alpha/swci/bob")
    assert (await web("pwd"))["lines"], "the same client may ask on"
    resting.cancel()
    await asyncio.wait([resting])


async def test_a_command_has_a_deadline(start_web) -> None:
    web = await start_web(command_timeout_s=0.05)
    with pytest.raises(TimedOut, match=r"longer than 0\.05 s"):
        await web("sleep 1000")
    assert "ERROR the command took longer" in (await web.hpe("sleep 1000"))[0]


async def test_a_web_session_does_not_leave_its_folder(web, tmp_path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    for command in ("cd ..", "cd /", "ls /etc", "cd link", "ls link/", "create task from ../x", "ls ~", "cd ~root"):
        with pytest.raises(ConfigError, match=r"lies outside|No such|no folder"):
            await web(command)
    assert (await web("pwd"))["lines"] == [str(tmp_path)]


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=6,
)
BODIES = st.one_of(
    st.binary(max_size=40),
    JSON.map(lambda value: json.dumps(value).encode()),
    st.one_of(JSON, st.text(max_size=30)).map(lambda value: json.dumps({"command": value}).encode()),
)
PATHS = st.sampled_from(["/v1/commands", "/exec", "/exec?cmd=%ff", "/exec?cmd=help%00", "/uploadTaskDef", "/v1/%2e%2e"])
KINDS = st.sampled_from(
    ["application/json", "multipart/form-data", "multipart/form-data; boundary=x", "text/plain", "multipart/x;;="]
)
MULTIPART = st.lists(
    st.sampled_from(
        [b"--x\r\n", b"--x--\r\n", b'Content-Disposition: form-data; name="file"\r\n', b"\r\n", b"\xff", b"a:"]
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.slow
async def test_no_body_is_answered_by_a_500(web) -> None:
    loop = asyncio.get_running_loop()

    @settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], deadline=None)
    @given(PATHS, KINDS, BODIES | MULTIPART)
    def check(path: str, kind: str, body: bytes) -> None:
        asked = web.raw("POST", path, data=body, headers={"Content-Type": kind})
        status, text = asyncio.run_coroutine_threadsafe(asked, loop).result(30)
        assert status < 500, text
        assert "Traceback" not in text

    await asyncio.to_thread(check)
