"""Volumes that tasks fill: downloads from a real server, archives, repeats, and what a killed one has left."""

from __future__ import annotations

import contextlib
import functools
import io
import os
import tarfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from swarm_hpc.errors import ConfigError, DiskFull, NotReachable, SwarmError
from swarm_hpc.swop.extract import extract
from swarm_hpc.swop.places import Places
from swarm_hpc.swop.work import perform
from swarm_hpc.tasks.file import ContentType, MakeUserContent, Operation


class Handler(BaseHTTPRequestHandler):
    def __init__(self, files, asked, *args):
        self.files, self.asked = files, asked
        super().__init__(*args)

    def do_GET(self):
        self.asked.append(self.path)
        found = self.files.get(self.path)
        if found is None:
            self.send_error(404)
            return
        if isinstance(found, str):
            self.send_response(302)
            self.send_header("Location", found)
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(found)))
        self.end_headers()
        if self.path == "/drip":  # a byte now and then keeps a connection that is only watched for silence
            with contextlib.suppress(OSError):
                while not self.files["stop"].wait(0.01):
                    self.wfile.write(b"x")
            return
        self.wfile.write(found if self.path != "/cut" else found[:-1])

    def log_message(self, *words):
        pass


class Site:
    def __init__(self, root, url, files, asked):
        self.volumes, self.url, self.files, self.asked = root / "volumes", url, files, asked
        self.said = []
        self.root = root

    def make(self, *operations, kind=ContentType.BUILDCONTENT, outcome="data", **changes):
        steps = tuple(
            Operation(kind=one[0], target=one[1].replace("URL", self.url), out=one[2] if len(one) > 2 else None)
            for one in operations
        )
        fields = {"images": self.root, "volumes": self.volumes, "log": self.root / "log", "timeout_s": 20}
        places = Places(**fields | changes)
        return perform(MakeUserContent(content_type=kind, operations=steps), outcome, places, self.said.append)


@pytest.fixture
def site(tmp_path):
    files, asked = {"/a.txt": b"a", "/d.zip": zipped({"x/y.txt": b"y"}), "/d.tgz": tarred({"z.txt": b"z"})}, []
    files["/away"], files["/file"], files["/cut"] = "/a.txt", "file:///etc/passwd", b"cut"
    files["/drip"], files["stop"] = bytes(1 << 20), threading.Event()
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, files, asked))
    thread = threading.Thread(target=functools.partial(server.serve_forever, poll_interval=0.01))
    thread.start()
    yield Site(tmp_path, f"http://127.0.0.1:{server.server_port}", files, asked)
    files["stop"].set()
    server.shutdown()
    thread.join()
    server.server_close()


def zipped(files):
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in files.items():
            file.writestr(name, content)
    return data.getvalue()


def tarred(files, *members):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as file:
        for member in members:
            file.addfile(member)
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return data.getvalue()


def test_downloads_and_archives_fill_a_volume(site):
    told = site.make(
        ("DOWNLOAD", "URL/a.txt"),
        ("DOWNLOAD", "URL/a.txt", "sub/b.txt"),
        ("DOWNLOAD", "URL/d.zip", "/sub/"),
        ("EXTRACT", "sub/d.zip", "out"),
        ("EXTRACT", "URL/d.tgz"),
    )
    volume = site.volumes / "data"
    assert told == "volume data: made by 5 operations"
    assert {str(one.relative_to(volume)) for one in volume.rglob("*") if one.is_file()} == {
        *("a.txt", "sub/b.txt", "sub/d.zip", "out/x/y.txt", "z.txt")
    }
    assert len(site.said) == 6
    assert sorted(one.name for one in site.volumes.iterdir()) == [".data.task.json", ".lock", "data"]


def test_a_repeat_does_nothing_and_a_changed_body_makes_it_anew(site):
    site.make(("DOWNLOAD", "URL/a.txt"))
    assert "there already" in site.make(("DOWNLOAD", "URL/a.txt"))
    assert site.asked == ["/a.txt"]
    site.make(("DOWNLOAD", "URL/a.txt", "b.txt"))
    assert [one.name for one in (site.volumes / "data").iterdir()] == ["b.txt"]


def test_each_node_gets_a_volume_of_its_own_from_one_download(site):
    site.make(("DOWNLOAD", "URL/a.txt"), kind=ContentType.SWARMCONTENT, nodes=(0, 3))
    for name in ("data-0", "data-3"):
        assert (site.volumes / name / "a.txt").read_bytes() == b"a"
    assert site.asked == ["/a.txt"]


def test_a_volume_that_no_task_has_made_stays(site):
    (site.volumes / "data").mkdir(parents=True)
    (site.volumes / "data" / "precious").touch()
    with pytest.raises(ConfigError, match="no task has made it"):
        site.make(("DOWNLOAD", "URL/a.txt"))
    assert (site.volumes / "data" / "precious").exists()


def test_what_a_killed_one_has_left_is_removed_and_the_work_done_again(site):
    site.make(("DOWNLOAD", "URL/a.txt"))
    (site.volumes / ".making-old" / "volume").mkdir(parents=True)
    claim = site.volumes / ".data.task.json"
    claim.write_text('{"outcome": "data", "key": ""}')  # killed just before it was finished
    assert "made by" in site.make(("DOWNLOAD", "URL/a.txt"))
    assert not (site.volumes / ".making-old").exists()


def test_a_failure_leaves_the_volume_as_it_was(site):
    site.make(("DOWNLOAD", "URL/a.txt"))
    with pytest.raises(NotReachable, match="404"):
        site.make(("DOWNLOAD", "URL/none"))
    assert (site.volumes / "data" / "a.txt").exists()


@pytest.mark.parametrize(
    ("operation", "changes", "reason"),
    [
        (("DOWNLOAD", "ftp://x/y"), {}, "http://, https:// or file:///"),
        (("DOWNLOAD", "https://jane:pw@x/y"), {}, "name or password"),
        (("DOWNLOAD", "relative"), {}, "http://"),
        (("DOWNLOAD", "URL/a.txt", "../x"), {}, "leads out"),
        (("EXTRACT", "none.zip"), {}, "no such file in the volume"),
        (("EXTRACT", "../../etc/x.zip"), {}, "leads out"),
        (("EXTRACT", "URL/a.txt"), {}, "no zip or tar"),
        (("DOWNLOAD", "URL/file"), {}, "not allowed"),
        (("DOWNLOAD", "URL/away"), {"downloads": ("*/away",)}, "policy"),
        (("DOWNLOAD", "URL/d.zip"), {"max_download_bytes": 10}, "10 are allowed"),
        (("EXTRACT", "URL/d.zip"), {"max_unpacked_bytes": 0}, "more than is allowed here: see EXTRACT"),
        (("DOWNLOAD", "URL/cut"), {}, "ended after 2 of 3|cannot be fetched"),
        (("DOWNLOAD", "file:///none"), {}, "No such file"),
        (("DOWNLOAD", "file:///etc/hostname"), {"paths": ("/data",)}, "policy"),
        (("DOWNLOAD", "file:///dev/null"), {}, "is no file"),
        (("DOWNLOAD", "file:/etc/hostname", "x"), {}, "begins with"),
        (("DOWNLOAD", "http://[x"), {}, "is no URI"),
        (("DOWNLOAD", "URL/drip"), {"timeout_s": 0.1}, "not done after 0.1 s"),
    ],
)
def test_what_cannot_be_fetched_is_refused_in_words(site, operation, changes, reason):
    with pytest.raises(SwarmError, match=reason) as caught:
        site.make(operation, **changes)
    assert "jane:pw" not in str(caught.value)
    assert not (site.volumes / "data").exists()


def test_a_link_that_leads_out_of_the_paths_of_the_site_is_followed_before_it_is_refused(site, tmp_path):
    (tmp_path / "open").mkdir()
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "open" / "link").symlink_to(tmp_path / "secret")
    (tmp_path / "open" / "file").write_text("public")
    paths = (str(tmp_path / "open"),)
    with pytest.raises(ConfigError, match="policy"):
        site.make(("DOWNLOAD", (tmp_path / "open" / "link").as_uri()), paths=paths)
    site.make(("DOWNLOAD", (tmp_path / "open" / "file").as_uri()), paths=paths)
    assert (site.volumes / "data" / "file").read_text() == "public"


def test_links_within_an_archive_are_kept(tmp_path):
    (tmp_path / "a").write_bytes(tarred({"real/x": b"1"}, link("here", "real/x"), link("folder", "real")))
    extract(tmp_path / "a", tmp_path / "in", 1000)
    assert (tmp_path / "in" / "here").read_bytes() == (tmp_path / "in" / "folder" / "x").read_bytes() == b"1"


def test_a_pipe_is_no_file_and_is_not_waited_for(site, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ConfigError, match="is no file"):
        site.make(("DOWNLOAD", (tmp_path / "pipe").as_uri()))


def test_a_redirection_is_followed(site):
    site.make(("DOWNLOAD", "URL/away"))
    assert (site.volumes / "data" / "away").read_bytes() == b"a"


def link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return info


def device():
    info = tarfile.TarInfo("dev")
    info.type = tarfile.CHRTYPE
    return info


def folder(name):
    info = tarfile.TarInfo(name)
    info.type = tarfile.DIRTYPE
    return info


def file(name):
    return tarfile.TarInfo(name)


def hard_link(name, target):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = tarfile.LNKTYPE, target
    return info


def deep_links():
    """CVE-2025-4517: a way so long that Python's check of links gives up, and the system, by short links, does not."""
    deep, at = "d" * 247, ""
    for letter in "abcdefghijklmnop":
        yield folder(f"{at}{deep}")
        yield link(f"{at}{letter}", deep)
        at += f"{deep}/"
    last = f"{'/'.join('abcdefghijklmnop')}/{'l' * 254}"
    yield link(last, "../" * 16)
    yield link("escape", f"{last}/..")
    yield file("escape/x")


@pytest.mark.parametrize(
    "content",
    [
        zipped({"../x": b""}),
        zipped({"/abs": b""}),
        zipped({"a\\..\\b": b""}),
        tarred({"../x": b""}),
        tarred({"out/x": b""}, link("out", "/tmp")),
        tarred({"out/x": b""}, link("out", "..")),
        tarred({}, device()),
        tarred({}, folder("real"), link("behind", "real"), file("behind/y")),
        tarred({}, link("first", "later/.."), link("later", ".")),
        tarred({}, link("target", "/etc/passwd"), hard_link("x", "target")),
        tarred({}, link("target", "inside"), hard_link("x", "target")),
        tarred({}, *deep_links()),
    ],
    ids=[
        "zip: above",
        "zip: absolute",
        "zip: backslash",
        "above",
        "link: absolute",
        "link: above",
        "device",
        "behind a link",
        "links in an order",
        "hard link: above",
        "hard link: a link",
        "links too deep",
    ],
)
def test_an_archive_that_leads_out_is_refused(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ConfigError):
        extract(tmp_path / "a", tmp_path / "in" / "side", 1000)
    assert not list((tmp_path / "in" / "side").rglob("x"))
    assert not (tmp_path / "in" / "x").exists()


def test_an_archive_that_blows_up_is_stopped(tmp_path):
    for content in (zipped({"x": bytes(1 << 20)}), tarred({"x": bytes(1 << 20)})):
        (tmp_path / "a").write_bytes(content)
        with pytest.raises(DiskFull, match="more than is allowed"):
            extract(tmp_path / "a", tmp_path / "out", 1000)
