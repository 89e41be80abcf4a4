"""What a sandbox said last, when an executor is at work in two of them (a doubled invocation, a slow attempt)."""

from lambda_worker.last_words import LastWords, last_words


def test_who_comes_second_does_not_cut_the_file_that_the_first_has_mapped(tmp_path):
    """Who writes to a map beyond the end of its file is killed by SIGBUS."""
    first, second = LastWords(str(tmp_path), "first"), LastWords(str(tmp_path), "second")
    first.begin("executor")
    first.say(3)
    with open(tmp_path / "executor", "rb") as mapped:
        second.begin("executor")
        second.say(9)
        assert int.from_bytes(mapped.read(), "little") == 3
    first.say(4)
    assert last_words(str(tmp_path), "executor") == 9


def test_who_ends_first_leaves_the_other_its_file(tmp_path):
    first, second = LastWords(str(tmp_path), "first"), LastWords(str(tmp_path), "second")
    first.begin("executor")
    second.begin("executor")
    second.say(9)
    first.end()
    first.begin("another")
    first.say(1)
    second.say(10)
    assert last_words(str(tmp_path), "executor") == 10
    assert last_words(str(tmp_path), "another") == 1


def test_a_warm_sandbox_keeps_its_file(tmp_path):
    words = LastWords(str(tmp_path), "sandbox")
    words.begin("first")
    inode = (tmp_path / "first").stat().st_ino
    words.end()
    words.begin("second")
    words.say(5)
    assert (tmp_path / "second").stat().st_ino == inode
    assert last_words(str(tmp_path), "first") is None
    assert last_words(str(tmp_path), "second") == 5
