"""A blob is in the store whole and verified, or not at all: also after a kill, on a full disk, with two writers."""

import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from blake3 import blake3

from swarm_hpc.errors import BlobCorrupt, BlobNotFound, DiskFull, ProtocolError
from swarm_hpc.transport import store as blob_store
from swarm_hpc.transport.store import BLOCK_BYTES, BlobStore, BlobWriter, hash_bytes

DATA = os.urandom(BLOCK_BYTES + 999) + b"!"
BLOB = blake3(DATA).hexdigest()


@pytest.fixture
def store(tmp_path):
    return BlobStore(tmp_path / "store")


def files(store):
    return sorted(entry.name for entry in store.folder.iterdir())


@pytest.mark.parametrize("size", [0, 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 7])
def test_the_hash_is_blake3_of_the_whole(size):
    data = os.urandom(size)
    assert hash_bytes(data) == hash_bytes(memoryview(bytearray(data))) == blake3(data).hexdigest()


@pytest.mark.parametrize("data", [b"", b"x", DATA])
def test_what_is_put_can_be_read(store, data):
    blob = store.put(data)
    assert store.has(blob) and store.path(blob).read_bytes() == data
    assert store.blobs() == files(store) == [blob]


def test_a_repeated_put_does_nothing(store):
    store.put(DATA)
    before = store.path(BLOB).stat()
    assert store.put(memoryview(DATA), blob=BLOB) == BLOB
    assert store.path(BLOB).stat().st_ino == before.st_ino


def test_bytes_under_a_wrong_hash_are_corrupt_and_not_kept(store):
    with pytest.raises(BlobCorrupt, match=BLOB):
        store.put(DATA, blob="0" * 64)
    assert files(store) == []


def test_a_writer_keeps_nothing_of_wrong_bytes(store):
    with pytest.raises(BlobCorrupt, match="have the hash"), store.writer(BLOB, len(DATA)) as writer:
        writer.write(b"\0" + DATA[1:])
    assert files(store) == []


def test_a_writer_keeps_nothing_of_too_few_bytes(store):
    with (
        pytest.raises(BlobCorrupt, match=f"{len(DATA) - 1} of {len(DATA)} bytes"),
        store.writer(BLOB, len(DATA)) as writer,
    ):
        writer.write(DATA[:-1])
    assert files(store) == []


def test_a_writer_refuses_more_than_was_announced(store):
    with pytest.raises(BlobCorrupt, match="more than"), store.writer(BLOB, len(DATA) - 1) as writer:
        writer.write(DATA)
    assert files(store) == []


def test_a_writer_that_fails_leaves_nothing(store):
    with pytest.raises(RuntimeError), store.writer(BLOB, len(DATA)) as writer:
        writer.write(DATA[:100])
        raise RuntimeError
    assert files(store) == []


def test_a_blob_is_not_there_before_it_is_whole(store):
    with store.writer(BLOB, len(DATA)) as writer:
        writer.write(DATA)
        assert not store.has(BLOB) and store.blobs() == []
    assert store.blobs() == [BLOB]


def test_two_writers_of_one_blob_do_not_disturb_each_other(store):
    with store.writer(BLOB, len(DATA)) as first, store.writer(BLOB, len(DATA)) as second:
        first.write(DATA[:10])
        second.write(DATA)
        first.write(DATA[10:])
    assert store.path(BLOB).read_bytes() == DATA and files(store) == [BLOB]


def test_an_unknown_blob_is_not_found(store):
    with pytest.raises(BlobNotFound, match=BLOB):
        store.path(BLOB)


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "A" * 64, "0" * 63, "0" * 64 + "\n"])
def test_a_name_that_is_no_hash_never_becomes_a_path(store, name):
    for ask in (store.path, store.has, store.delete, lambda blob: store.writer(blob, 1)):
        with pytest.raises(ProtocolError, match="is no blob"):
            ask(name)


def test_deleting_twice_is_no_error(store):
    store.put(DATA)
    store.delete(BLOB)
    store.delete(BLOB)
    assert not store.has(BLOB)


def test_other_files_in_the_folder_are_neither_listed_nor_removed(store):
    (store.folder / "README").write_text("hello")
    (store.folder / f".{BLOB}.part").write_text("not made by a writer")
    assert BlobStore(store.folder).blobs() == []
    assert files(store) == [f".{BLOB}.part", "README"]


def test_a_blob_that_would_leave_too_little_room_is_refused(tmp_path):
    store = BlobStore(tmp_path, min_free_bytes=1 << 60)
    with pytest.raises(DiskFull, match=rf"{tmp_path}: .*min_free_mib.*free some space there"):
        store.put(DATA)
    assert files(store) == []


# Real limits and real kills need a process of their own.

FULL = """
import resource, sys
from pathlib import Path
from swarm_hpc.errors import DiskFull
from swarm_hpc.transport.store import BlobStore
store = BlobStore(Path(sys.argv[1]))
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    store.put(bytes(3 << 20))
except DiskFull as exc:
    print(f"DiskFull: {exc}")
"""

HALF = """
import sys
from pathlib import Path
from swarm_hpc.transport.store import BlobStore
writer = BlobStore(Path(sys.argv[1])).writer(sys.argv[2], 2_000_000)
writer.write(bytes(1_000_000))
print("half", flush=True)
sys.stdin.read()
"""


def test_a_full_disk_is_named_and_leaves_nothing(store):
    done = subprocess.run([sys.executable, "-c", FULL, store.folder], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith(f"DiskFull: {store.folder}: File too large; free some space"), done.stderr
    assert files(store) == []


def test_a_kill_in_the_middle_of_a_put_leaves_no_half_blob(store):
    blob = hash_bytes(bytes(2_000_000))
    child = subprocess.Popen(
        [sys.executable, "-c", HALF, store.folder, blob], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with child:
        assert child.stdout.readline() == "half\n"
        (hidden,) = files(store)
        assert BlobStore(store.folder).blobs() == []
        assert files(store) == [hidden], "a second process must not remove what the first one is writing"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert files(store) == [hidden] and store.blobs() == []
    assert BlobStore(store.folder).put(bytes(2_000_000)) == blob
    assert files(store) == [blob], "the next start removes what the kill has left"


# Adopting files from a shared folder.


def shared(tmp_path, data=DATA):
    source = tmp_path / "shared" / BLOB
    source.parent.mkdir(exist_ok=True)
    source.write_bytes(data)
    return source


def test_adopting_moves_the_file(store, tmp_path):
    source = shared(tmp_path)
    inode = source.stat().st_ino
    store.adopt(source, BLOB)
    assert store.path(BLOB).stat().st_ino == inode and not source.exists()


def test_adopting_again_does_nothing(store, tmp_path):
    store.adopt(shared(tmp_path), BLOB)
    store.adopt(shared(tmp_path), BLOB)
    store.adopt(tmp_path / "shared" / BLOB, BLOB)
    assert store.blobs() == [BLOB] and not (tmp_path / "shared" / BLOB).exists()


@pytest.mark.parametrize("renames", [True, False], ids=["by rename", "by copy"])
def test_what_another_request_has_adopted_meanwhile_is_there(store, tmp_path, monkeypatch, renames):
    source, verify = shared(tmp_path), blob_store._verify_file

    def and_be_overtaken(path, blob):
        size_bytes = verify(path, blob)
        monkeypatch.setattr(blob_store, "_verify_file", verify)
        store.adopt(path, blob)
        return size_bytes

    monkeypatch.setattr(blob_store, "_verify_file", and_be_overtaken)
    if not renames:
        monkeypatch.setattr(blob_store, "_OTHER_FILE_SYSTEM", blob_store._OTHER_FILE_SYSTEM | {errno.ENOENT})
    store.adopt(source, BLOB)
    assert store.blobs() == [BLOB] and not source.exists()


def test_a_corrupt_file_is_not_adopted(store, tmp_path):
    source = shared(tmp_path, DATA[:-1] + b"?")
    with pytest.raises(BlobCorrupt, match=str(source)):
        store.adopt(source, BLOB)
    assert source.exists() and files(store) == []


def test_a_file_that_is_not_there_is_not_found(store, tmp_path):
    with pytest.raises(BlobNotFound, match="is shared_dir the same folder for SL and SN"):
        store.adopt(tmp_path / BLOB, BLOB)


def test_no_link_is_adopted(store, tmp_path):
    (tmp_path / "secret").write_bytes(DATA)
    (tmp_path / BLOB).symlink_to(tmp_path / "secret")
    with pytest.raises(BlobNotFound):
        store.adopt(tmp_path / BLOB, BLOB)


def test_no_pipe_is_adopted(store, tmp_path):
    os.mkfifo(tmp_path / BLOB)
    with pytest.raises(BlobNotFound, match="no regular file"):
        store.adopt(tmp_path / BLOB, BLOB)


@pytest.mark.skipif(
    not os.path.isdir("/dev/shm") or os.stat("/dev/shm").st_dev == os.stat("/tmp").st_dev,
    reason="needs two file systems",
)
def test_a_file_on_another_file_system_is_copied_and_removed(tmp_path):
    source = shared(tmp_path)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        store = BlobStore(Path(folder))
        store.adopt(source, BLOB)
        assert store.path(BLOB).read_bytes() == DATA and not source.exists()


def test_a_file_may_be_written_beside_any_target(tmp_path):
    with BlobWriter(tmp_path / "model.safetensors", BLOB, len(DATA)) as writer:
        writer.write(DATA)
    assert (tmp_path / "model.safetensors").read_bytes() == DATA
    assert [entry.name for entry in tmp_path.iterdir()] == ["model.safetensors"]
