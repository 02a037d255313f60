"""How programs start and end: exit status, one-line errors, and XLA's flags left to the user."""

import subprocess
import sys

import pytest

from difflid_jax import cli as program


def ended(body: str, *arguments: str) -> subprocess.CompletedProcess:
    """A program with `body` as its main, run with `arguments`."""
    code = f"from difflid_jax.cli import UsageError, run\ndef main(argv):\n    {body}\nrun(main)"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("return None", 0, ""),
        ("return 1", 1, ""),
        ("raise UsageError('a,\\n  b')", 2, "-c: a, b\n"),
        ("raise ValueError('bad')", 2, "-c: bad\n"),
        ("raise ValueError('\\x1b[2Jß')", 2, "-c: ?[2Jß\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("open('/no/such/file')", 2, "-c: /no/such/file: No such file or directory\n"),
    ],
)
def test_exit_status_and_one_line(body, status, error):
    found = ended(body)
    assert (found.returncode, found.stderr) == (status, error)


def test_a_defect_keeps_its_traceback():
    found = ended("raise RuntimeError('ours')")
    assert found.returncode == 1 and "Traceback" in found.stderr


def test_an_unknown_flag_is_refused_in_one_line():
    found = ended("return 0", "--no_such_flag")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "no_such_flag" in found.stderr and "--help" in found.stderr


def test_a_users_own_xla_flags_stay():
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    program.tune_cpu(environment)
    assert environment == {"XLA_FLAGS": "--xla_dump_to=x"}


def test_versions_never_tried_get_no_flag(monkeypatch):
    monkeypatch.setattr(program.importlib.metadata, "version", lambda name: "99.0")
    environment = {}
    program.tune_cpu(environment)
    assert environment == {}


def test_a_config_that_refuses_its_argument_says_so_without_its_traceback():
    error = ValueError("Parsing:\n\nTraceback (most recent call last):\n  File\n\nValueError: two words\n")
    assert program.one_line(error) == "Parsing: ValueError: two words"
