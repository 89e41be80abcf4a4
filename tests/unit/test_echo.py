"""What tasks print appears where the user looks, once, also when the log is rotated."""

from __future__ import annotations

from dask_serverless import echo
from tests.waiting import until


def test_what_is_appended_is_written_once(tmp_path, capsys):
    log = tmp_path / "log"
    follower = echo.Echo(str(log))
    follower.start()
    seen = []

    def shown():
        seen.append(capsys.readouterr().out)
        return "".join(seen)

    log.write_text("one\n")
    until(lambda: shown() == "one\n")
    with log.open("a") as file:
        file.write("zwei: ü\n")
    until(lambda: shown() == "one\nzwei: ü\n")
    log.write_text("")  # rotated
    log.write_text("3\n")
    until(lambda: shown().endswith("3\n"))
    follower.stop()
    assert "".join(seen).count("one") == 1
