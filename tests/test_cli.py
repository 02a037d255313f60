"""How programs start and end: exit status, one-line errors, flags, output that cannot fail, and the cache."""

import errno
import os
import subprocess
import sys

import pytest
from absl import flags

from difflid_jax import cli
from difflid_jax.atomic import atomic_write


def ended(
    body: str, *arguments: str, define: str = "None", **environment: str
) -> subprocess.CompletedProcess:
    """A program with `body` as its main, run with `arguments`."""
    code = f"from difflid_jax.cli import UsageError, run\ndef main(argv):\n    {body}\nrun(main)"
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("return None", 0, ""),
        ("return 1", 1, ""),
        ("raise UsageError('a,\\n  b')", 2, "-c: a, b\n"),
        ("raise ValueError('\\x1b[2Jß')", 2, "-c: ?[2Jß\n"),
        ("raise KeyboardInterrupt", 130, ""),
        ("open('/no/such/file')", 2, "-c: /no/such/file: No such file or directory\n"),
    ],
)
def test_exit_status_and_one_line(body, status, error):
    found = ended(body)
    assert (found.returncode, found.stderr) == (status, error)


@pytest.mark.parametrize("platform", ["nowhere", "rocm"])  # not known to JAX; known, without its plugin
def test_a_platform_that_is_not_there_is_one_line(platform):
    found = ended("import jax; jax.devices()", JAX_PLATFORMS=platform)
    assert found.returncode == 2 and len(found.stderr.splitlines()) == 1
    assert found.stderr.startswith(f"-c: JAX finds no device for JAX_PLATFORMS='{platform}' (")


def test_a_defect_keeps_its_traceback():
    found = ended("raise RuntimeError('ours')")
    assert found.returncode == 1 and "Traceback" in found.stderr


def test_an_unknown_flag_is_refused_in_one_line():
    found = ended("return 0", "--no_such_flag")
    assert found.returncode == 2 and "Traceback" not in found.stderr
    assert "no_such_flag" in found.stderr and "--help" in found.stderr


def test_printing_escapes_what_the_encoding_lacks():
    found = ended("print('Übung', '\\udcfc')", PYTHONIOENCODING="ascii")
    assert (found.returncode, found.stdout) == (0, "\\xdcbung \\udcfc\n")
    found = ended("return 0", "--\udcfc", PYTHONIOENCODING="ascii")
    assert found.returncode == 2 and "Traceback" not in found.stderr


def test_a_reader_that_is_gone_ends_a_program_without_a_message():
    command = f"set -o pipefail; {sys.executable} -m difflid_jax.restore --help | true"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert found.returncode in (0, 141) and not found.stderr  # 0: all was written before the reader left


def test_path_flags_expand_the_home_directory(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    values = flags.FlagValues()
    cli.definer(values)("path", "output", "", "")
    values(["program", "--output=~/x"])
    assert values.output == "/home/me/x"


@pytest.mark.parametrize("given", [["--config=demo"], ["--config", "demo"]])
def test_a_config_may_be_named_either_way(given, monkeypatch):
    values = flags.FlagValues()
    cli.definer(values)("string", "config", "", "")
    monkeypatch.setattr(cli.flags, "FLAGS", values)
    assert cli._parse_flags(["program", *given, "--", "--config"]) == ["program", "--config"]
    assert values.config.endswith("configs/demo.py")


def test_an_unknown_home_directory_is_refused(monkeypatch):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    with pytest.raises(ValueError, match="home directory is unknown"):
        cli.expand_home("~/x")
    assert cli.expand_home("~x/y") == "~x/y"  # a directory may be named so


def test_a_users_own_xla_flags_stay():
    environment = {"XLA_FLAGS": "--xla_dump_to=x"}
    cli.tune_cpu(environment)
    assert environment == {"XLA_FLAGS": "--xla_dump_to=x"}


def test_untested_versions_get_no_xla_flag(monkeypatch):
    monkeypatch.setattr(cli.importlib.metadata, "version", lambda name: "99.0")
    environment = {}
    cli.tune_cpu(environment)
    assert environment == {}


def test_a_config_error_is_reported_without_its_traceback():
    error = ValueError("Parsing:\n\nTraceback (most recent call last):\n  File\n\nValueError: two words\n")
    assert cli.one_line(error) == "Parsing: ValueError: two words"


def test_an_unusable_cache_directory_means_no_cache(monkeypatch, tmp_path):
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)
    assert cli._cache_folder() is None
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert cli._cache_folder() is None


LISTED = """
import importlib, sys
from absl import flags
from difflid_jax.__main__ import PROGRAMS
for name, module in PROGRAMS.items():
    importlib.import_module(module).define_flags(flags.FlagValues())
    assert "jax" not in sys.modules, f"{name} imports JAX before its flags are read"
"""


def test_no_program_imports_jax_before_its_flags_are_read():
    """So --help and a usage error answer in well under a second."""
    found = subprocess.run([sys.executable, "-c", LISTED], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr


CACHED = """
import jax
from difflid_jax.cli import use_compilation_cache
use_compilation_cache()
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
print(jax.jit(lambda x: x + 1)(1))
"""


def test_an_orphaned_entry_does_not_switch_the_cache_off(tmp_path):
    """JAX alone warns and stores nothing ever after."""
    folder = tmp_path / "difflid_jax"
    folder.mkdir()
    (folder / "orphan-cache").write_bytes(b"x")
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    found = subprocess.run([sys.executable, "-c", CACHED], env=environment, capture_output=True, text=True)
    assert (found.stdout, found.stderr) == ("2\n", "")
    assert len(list(folder.glob("*-cache"))) > 1


def test_a_write_that_fails_names_the_file_and_leaves_the_old_one(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(OSError, match="file") as caught, atomic_write(path) as temporary:
        temporary.write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert cli.one_line(caught.value) == f"{path}: No space left on device"
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileExistsError, match="--overwrite"), atomic_write(path, overwrite=False):
        pass
