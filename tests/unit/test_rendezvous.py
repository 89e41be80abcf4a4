"""The place where a persistent cluster is found again: private, and one owner's."""

from __future__ import annotations

import os
import stat

import pytest

from dask_serverless.backend import LocalBackend, size_left
from dask_serverless.cluster_arguments import check_persistent
from dask_serverless.config import Settings
from dask_serverless.errors import ClusterInUse, PlatformError
from dask_serverless.rendezvous import Rendezvous, check_name, default_directory


def mode(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def test_it_is_private_and_gone_when_it_is_removed(tmp_path):
    place = Rendezvous("night", str(tmp_path))
    place.claim()
    place.write({"secret": "x"})
    assert mode(place.path) == 0o700 and mode(place.path / "record.json") == 0o600
    assert place.remains() == {"secret": "x"}
    assert place.read() is None  # nobody keeps anything here
    place.remove()
    place.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_an_earlier_version_has_left_is_ended(tmp_path):
    """Its record does not say which directories go with its servers."""
    place = Rendezvous("night", str(tmp_path))
    place.claim()
    (tmp_path / "servers").mkdir()
    (tmp_path / "executors").mkdir()
    place.write({"tier": {"directory": str(tmp_path / "servers")}, "directory": str(tmp_path / "executors")})
    backend = LocalBackend("night", 2, Settings.load(), persistent=True)
    backend._end_remains(place)
    place.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_process_cannot_claim_it_twice(tmp_path):
    place, other = Rendezvous("night", str(tmp_path)), Rendezvous("night", str(tmp_path))
    place.claim()
    with pytest.raises(ClusterInUse, match="'night' belongs to this process, which lives"):
        other.claim()
    other.remove()  # which takes nothing from the owner
    assert place.path.exists()
    place.release()
    other.claim()
    other.remove()


def test_a_directory_that_others_may_look_into_is_refused(tmp_path):
    (tmp_path / "night").mkdir(mode=0o755)
    (tmp_path / "night").chmod(0o755)
    with pytest.raises(PlatformError, match="is not this user's alone"):
        Rendezvous("night", str(tmp_path)).claim()


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "x" * 65, "a b", ".hidden", "ä"])
def test_a_name_that_is_no_directory_is_refused(name):
    with pytest.raises(ValueError, match="cannot name a persistent cluster"):
        check_name(name)
    assert size_left(name) is None


def test_it_is_where_the_users_programs_meet(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    assert default_directory() == str(tmp_path / "dask-serverless")
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path / "nowhere"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert default_directory() == str(tmp_path / "state" / "dask-serverless")


def test_what_cannot_persist_is_refused():
    with pytest.raises(ValueError, match="persistent=True needs a name"):
        check_persistent(True, None, Settings.load())
    with pytest.raises(TypeError, match="persistent='night' must be True or False"):
        check_persistent("night", "night", Settings.load())
    with pytest.raises(ValueError, match="persistent.timeout is 600.* must not exceed serverless.storage.ttl"):
        check_persistent(True, "night", Settings.load(storage_ttl="1 minute"))
    check_persistent(False, "any name", Settings.load(storage_ttl="1 minute"))
