"""What every test shares: a configuration of its own, and the rule that CI skips nothing in silence.

On a laptop a test that cannot run is skipped. When ``CI`` is set, a skip whose reason does not match
a line of ``expected_skips.txt`` fails the session, so that a missing part cannot hide behind a green run.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

EXPECTED_SKIPS = Path(__file__).with_name("expected_skips.txt")
_skips = pytest.StashKey[list[tuple[str, str]]]()


def expected_skips() -> list[re.Pattern[str]]:
    """Return the reasons for which a test may be skipped in CI."""
    lines = EXPECTED_SKIPS.read_text().splitlines()
    return [re.compile(line.strip()) for line in lines if line.strip() and not line.startswith("#")]


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_skips] = []
    config.pluginmanager.register(_SkipRule(config), "skip-rule")


class _SkipRule:
    """Collects skips, and fails the session for the unexpected ones when `CI` is set."""

    def __init__(self, config: pytest.Config) -> None:
        self.skips = config.stash[_skips]
        self.strict = os.environ.get("CI", "").lower() not in ("", "0", "false")

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail"):
            text = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
            self.skips.append((report.nodeid, text.removeprefix("Skipped: ")))

    pytest_runtest_logreport = note
    pytest_collectreport = note

    def unexpected(self) -> list[tuple[str, str]]:
        allowed = expected_skips()
        return [(name, why) for name, why in self.skips if not any(rule.fullmatch(why) for rule in allowed)]

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        if self.strict and self.unexpected() and exitstatus in (0, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.strict and (unexpected := self.unexpected()):
            terminalreporter.section("unexpected skips (CI is set)", red=True)
            for name, why in unexpected:
                terminalreporter.line(f"{name}: {why}")
            terminalreporter.line(f"Run what is missing, or allow the reason in {EXPECTED_SKIPS.name} and say why.")
