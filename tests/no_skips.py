"""A pytest plugin for the build machine: a skipped test counts as a failure. Loaded by `.ci/run` with `-p`.

Everything the tests need comes with the project, so a skip means that something was not tested.
"""

from __future__ import annotations

import pytest


def _skipped(config: pytest.Config) -> int:
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    # A module skipped as a whole and an expected failure are no more a test passed than a single skip is.
    return sum(len(reporter.stats.get(kind, ())) for kind in ("skipped", "xfailed")) if reporter else 0


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if _skipped(session.config) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if count := _skipped(config):
        terminalreporter.write_line(f"{count} skipped or expected to fail: not allowed here", red=True)
