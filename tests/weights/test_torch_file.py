"""PyTorch's files read without PyTorch: every dtype and layout, and no harm from damaged or hostile files."""

import argparse
import gzip
import io
import os
import pathlib
import pickle
import resource
import struct
import sys
import tracemalloc
import zipfile
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

from difflid_jax.weights import pickle_reader
from difflid_jax.weights.torch_file import read_pickle_arrays, read_torch

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
FILES = ["torch_zip.pt", "torch_legacy.pt"]

# What running a pickle would show. An audit hook cannot be removed, so it listens only when told to.
_FORBIDDEN = (
    "pickle.find_class",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "subprocess.Popen",
    "exec",
    "import",
)
_seen: list[str] = []
_listening = False


def _hook(event, _arguments):
    if _listening and event in _FORBIDDEN:
        _seen.append(event)


sys.addaudithook(_hook)


@pytest.fixture
def nothing_runs():
    global _listening
    zipfile.ZipFile(io.BytesIO(), "w").close()  # what zipfile itself imports late
    "".encode("cp437")
    _seen.clear()
    _listening = True
    yield
    _listening = False
    assert _seen == []


def test_the_hook_hears_what_pickle_runs():
    global _listening
    _listening = True
    pickle.loads(pickle.dumps(zipfile.ZipFile))
    _listening = False
    assert "pickle.find_class" in _seen


def zip_file(path, pickled, storages=None, compression=zipfile.ZIP_STORED, extra=()):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("x/data.pkl", pickled)
        for key, content in (storages or {}).items():
            archive.writestr(f"x/data/{key}", content)
        for name, content in extra:
            archive.writestr(name, content)
    return path


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def number(value):
    return b"\x8a" + bytes([8]) + struct.pack("<q", value)


def tensor(shape=(2,), strides=(1,), offset=0, count=2, key="0", storage=b"ctorch\nFloatStorage\n"):
    """The opcodes that torch.save writes for one tensor."""
    identity = b"(" + text("storage") + storage + text(key) + text("cpu") + number(count) + b"tQ"
    sizes = b"".join(b"(" + b"".join(map(number, n)) + b"t" for n in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + identity + number(offset) + sizes + b"\x89}tR"


def one_tensor(**claims):
    return b"\x80\x02}" + text("w") + tensor(**claims) + b"s."


def refusal(path, read=read_torch):
    with pytest.raises(ValueError) as error:
        read(path)
    message = str(error.value)
    assert message.startswith(f"{path}: ") and len(message) < 600
    assert "\n" not in message
    return message


@pytest.mark.parametrize("name", FILES)
def test_every_dtype_layout_and_plain_value_is_read(name):
    tree = read_torch(GOLDEN / name)
    with np.load(GOLDEN / "torch_files.npz") as expected:
        found = {f"{part}.{key}": t for part in ("state", "module") for key, t in tree[part].items()}
        assert found.keys() == set(expected.files)
        for key, array in expected.items():
            assert not found[key].flags.writeable or not found[key].size, key
            if key == "state.bfloat16":
                assert found[key].dtype == ml_dtypes.bfloat16
                found[key] = found[key].astype(np.float32)
            assert found[key].dtype == array.dtype and found[key].shape == array.shape, key
            np.testing.assert_array_equal(found[key], array)
    assert tree["list"] == [1, -1, 2**40, 1.5, None, True, "text ü", (1, 2, (3, ()))]
    assert tree["same"] is tree["list"]
    np.testing.assert_array_equal(tree["numpy"]["array"], np.arange(6).reshape(2, 3))
    np.testing.assert_array_equal(tree["numpy"]["fortran"], np.arange(6).reshape(2, 3))
    assert tree["numpy"]["scalar"] == 3.25
    assert tree["bytes"] == b"\x00\xff" and tree["size"] == (2, 3) and tree["device"] == "cuda:1"
    assert tree["epoch"] == 7 and tree[3] == "three"


@pytest.mark.parametrize("name", FILES)
def test_reading_runs_nothing(name, nothing_runs):
    read_torch(GOLDEN / name)


@pytest.mark.parametrize("protocol", range(2, 6))
def test_pickles_of_arrays_are_read(tmp_path, protocol):
    array = np.arange(6, dtype=np.float32).reshape(2, 3)
    tree = {
        "a": {"kernel": array, "again": array, "fortran": np.asfortranarray(array)},
        "b": [np.int64(3), np.zeros((0, 2)), np.ones(2, ml_dtypes.bfloat16), np.array(True)],
    }
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps(tree, protocol))
    read = read_pickle_arrays(path)
    for key in ("kernel", "again", "fortran"):
        np.testing.assert_array_equal(read["a"][key], array)
    for ours, theirs in zip(read["b"], tree["b"], strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)


def test_a_pickle_of_jax_arrays_is_read(tmp_path):
    jnp = pytest.importorskip("jax.numpy")
    path = tmp_path / "arrays.pkl"
    path.write_bytes(pickle.dumps([jnp.arange(3.0), jnp.ones(2, jnp.bfloat16)]))
    first, second = read_pickle_arrays(path)
    np.testing.assert_array_equal(first, np.arange(3, dtype=np.float32))
    assert second.dtype == ml_dtypes.bfloat16


class Evil:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


class EvilState(Evil):
    def __reduce__(self):
        return list, (), {"x": 1}, iter([Evil(self.marker)])


def hostile(marker):
    command = f"touch {marker}"
    shell = b"(" + text(command) + b"t"
    for protocol in range(2, 6):
        yield pickle.dumps(Evil(marker), protocol)
        yield pickle.dumps({"w": [EvilState(marker)]}, protocol)
    yield pickle.dumps(Evil(marker), 0)
    yield b"cos\nsystem\n" + shell + b"R."  # GLOBAL, REDUCE
    yield b"(S'touch " + str(marker).encode() + b"'\nios\nsystem\n."  # INST
    yield b"(cos\nsystem\n" + text(command) + b"o."  # OBJ
    yield b"cos\nsystem\n" + shell + b"\x81."  # NEWOBJ
    yield b"cos\nsystem\n" + shell + b"}\x92."  # NEWOBJ_EX
    yield b"\x82\x01" + shell + b"R."  # EXT1
    yield b"\x83\x01\x00" + shell + b"R."  # EXT2
    yield b"\x84\x01\x00\x00\x00" + shell + b"R."  # EXT4
    yield text("os") + text("system") + b"\x93" + shell + b"R."  # STACK_GLOBAL
    yield text("builtins") + text("getattr") + b"\x93" + shell + b"R."
    yield b"cbuiltins\neval\n" + shell + b"R."
    yield b"cnumpy.core.multiarray\n_reconstruct\n(cos\nsystem\n(K\x00tC\x01btR."
    yield b"ctorch._utils\n_rebuild_parameter.__globals__\n" + shell + b"R."
    yield b"ctorch._utils _rebuild_tensor_v2\nos.system\n" + shell + b"R."
    yield text("w") + shell + b"R."  # calls a string
    yield b"(" + shell + b"t" + shell + b"R."  # calls a tuple
    yield b"cnumpy\nndarray\n" + shell + b"R."
    yield b"ctorch\nFloatStorage\n" + shell + b"R."
    yield b"]}" + text("__setstate__") + text("os.system") + b"sb."  # BUILD on a list
    yield b"ctorch._utils\n_rebuild_parameter\n(NtR}" + text("__class__") + text("os.system") + b"sb."
    yield b"Pmarker\n."  # PERSID
    yield text("os.system") + b"Q."  # BINPERSID
    yield b"(" + text("module") + b"cos\nsystem\n" + text("a") + text("b") + b"tQ."
    yield b"\x97."  # NEXT_BUFFER


def test_hostile_pickles_are_refused_and_not_run(tmp_path, nothing_runs):
    marker = tmp_path / "marker"
    payloads = list(hostile(marker))
    legacy = (GOLDEN / "torch_legacy.pt").read_bytes()
    head = legacy.index(b"ctorch._utils")
    for payload in payloads:
        refusal(zip_file(tmp_path / "zip.pt", payload))
        raw = tmp_path / "raw.pkl"
        raw.write_bytes(payload)
        refusal(raw, read_pickle_arrays)
        inside = tmp_path / "legacy.pt"
        inside.write_bytes(legacy[:head] + payload.rstrip(b".") + legacy[head:])
        refusal(inside)
    assert len(payloads) > 30
    assert not marker.exists()


def test_the_message_names_what_a_hostile_pickle_refers_to(tmp_path):
    path = zip_file(tmp_path / "x.pt", pickle.dumps(Evil("y"), 2))
    assert "posix.system" in refusal(path) or "os.system" in refusal(path)
    assert "nothing of it was executed" in refusal(path)
    assert "the opcode INST" in refusal(zip_file(path, b"(ios\nsystem\n."))


@pytest.mark.parametrize(
    ("claims", "says"),
    [
        ({"count": 3}, "claims 12 bytes, found 8"),
        ({"count": 1 << 40}, "claims 4,398,046,511,104 bytes, found 8"),
        ({"count": -2}, "unknown way"),
        ({"shape": (3,)}, "claims 3 elements of a storage of 2"),
        ({"shape": (2,), "offset": 1}, "claims 3 elements of a storage of 2"),
        ({"shape": (2,), "strides": (1 << 40,)}, "elements of a storage of 2"),
        ({"shape": (1 << 40,), "strides": (0,)}, "elements of a storage of 2"),
        ({"shape": (1 << 47,) * 9, "strides": (0,) * 9}, "elements of a storage of 2"),
        ({"shape": (-1,)}, "impossible size"),
        ({"offset": -1}, "impossible size"),
        ({"strides": (-1,)}, "impossible size"),
        ({"shape": (1 << 60,)}, "impossible size"),
        ({"strides": (1, 1)}, "1 dimensions and 2 strides"),
        ({"shape": (1,) * 40, "strides": (1,) * 40}, "40 dimensions"),
        ({"key": "1"}, "lacks x/data/1"),
        ({"key": "../data.pkl"}, "lacks x/data/../data.pkl"),
        ({"storage": b"ctorch\nLongStorage\n"}, "claims 16 bytes, found 8"),
        ({"storage": b"ctorch\nComplexFloatStorage\n"}, "torch.ComplexFloatStorage"),
        ({"storage": text("FloatStorage")}, "unknown way"),
    ],
)
def test_claims_are_held_against_the_file(tmp_path, claims, says):
    path = zip_file(tmp_path / "x.pt", one_tensor(**claims), {"0": bytes(8)})
    assert says in refusal(path)


def test_the_handmade_tensor_is_right_where_its_claims_are(tmp_path):
    content = np.array([1.5, -2], np.float32).tobytes()
    tree = read_torch(zip_file(tmp_path / "x.pt", one_tensor(), {"0": content}))
    np.testing.assert_array_equal(tree["w"], [1.5, -2])


def nested(opcode, depth):
    return b"\x80\x02" + opcode * depth + b"."


def bombs():
    """Small files that ask for much memory or time; each must be refused, or read, in little of both."""
    yield "memo", b"\x80\x02]r\xff\xff\xff\xff."
    yield "string", b"X\xff\xff\xff\x7f."
    yield "bytes", b"\x8e" + struct.pack("<Q", 1 << 62) + b"."
    yield "bytearray", b"\x96" + struct.pack("<Q", 1 << 40) + b"."
    yield "negative", b"T" + struct.pack("<i", -5) + b"."
    yield "integer", b"\x8b" + struct.pack("<i", 100_000) + b"\x7f" * 100_000 + b"."
    yield "frame", b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"N."
    yield "depth of lists", b"\x80\x02" + b"]" * 50_000 + b"a" * 49_999 + b"."
    yield "depth of tuples", b"\x80\x02)" + b"\x85" * 50_000 + b"."
    yield "depth of marks", b"\x80\x02" + b"(" * 50_000 + b"t" * 50_000 + b"."
    doubling = b"".join(b"q" + bytes([n]) + b"h" + bytes([n]) + b"\x86" for n in range(120))
    yield "doubling", b"\x80\x02)" + doubling + b"."
    yield "doubling key", b"\x80\x02})" + doubling + b"Ns."
    yield "doubling size", b"\x80\x02ctorch\ndevice\n)" + doubling + b"\x85R."
    yield "doubling dtype", b"\x80\x02cnumpy\ndtype\n)" + doubling + b"\x85R."
    long = b"\x80\x02" + text("x" * 200_000) + b"q\x01"
    encode = b"c_codecs\nencode\nh\x01" + text("latin1") + b"\x86R"
    yield "bytes again and again", long + b"](" + encode * 5_000 + b"e\x86."
    size = b"ctorch\nSize\nh\x01\x85R"
    yield "sizes again and again", long + b"](" + size * 5_000 + b"e\x86."
    claim = b"(K\x01(" + number(1 << 45) + b"tcnumpy\ndtype\n(" + text("f8") + b"\x89\x88tR\x89C\x00tb"
    yield "array", b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tC\x01btR" + claim + b"."
    yield "objects", claim.replace(text("f8"), text("O8")).replace(b"(K\x01(", b"(") + b"."


@pytest.mark.parametrize("payload", [pytest.param(payload, id=what) for what, payload in bombs()])
def test_bombs_take_little_memory(tmp_path, payload):
    path = zip_file(tmp_path / "x.pt", payload)
    tracemalloc.start()
    try:
        read_torch(path)
    except ValueError as error:
        assert str(error).startswith(f"{path}: ")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_a_namespace_beside_the_tensors_is_read_as_a_dict(tmp_path):
    """Training scripts save their arguments; any other object is refused with advice."""
    given = {"opts": argparse.Namespace(lamda=0.1, name="x", sizes=[1, 2]), "epoch": 3}
    for protocol in range(2, 6):
        found = read_torch(zip_file(tmp_path / "x.pt", pickle.dumps(given, protocol)))
        assert found == {"opts": {"lamda": 0.1, "name": "x", "sizes": [1, 2]}, "epoch": 3}
    message = refusal(zip_file(tmp_path / "y.pt", pickle.dumps(pathlib.PurePosixPath("/x"), 2)))
    assert "pathlib" in message and "torch.save(torch.load(FILE, weights_only=False)" in message


def test_large_integers_are_read_but_are_no_keys(tmp_path):
    large = b"\x8a\x09" + (2**64 - 1).to_bytes(9, "little")
    assert read_torch(zip_file(tmp_path / "x.pt", large + b".")) == 2**64 - 1
    assert "uses a int as a key" in refusal(zip_file(tmp_path / "y.pt", b"}" + large + b"Ns."))


def test_messages_do_not_steer_the_terminal(tmp_path):
    message = refusal(zip_file(tmp_path / "x.pt", text("os\x1b[2J\r") + text("system") + b"\x93."))
    assert "os?[2J?.system" in message


def test_endless_pickles_end(tmp_path, monkeypatch):
    monkeypatch.setattr(pickle_reader, "_MAX_OPCODES", 1_000)
    assert "more than 1,000 steps" in refusal(zip_file(tmp_path / "x.pt", b"N0" * 501))
    assert read_torch(zip_file(tmp_path / "y.pt", b"N0" * 499 + b"N.")) is None


def test_zip_bombs_are_not_unpacked(tmp_path):
    path = zip_file(tmp_path / "x.pt", one_tensor(), {"0": bytes(50 << 20)}, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    assert "compressed or encrypted" in refusal(path)


def test_a_zip_directory_of_impossible_size_is_refused(tmp_path):
    """The directory's size may be claimed in the old or in the 64-bit end record."""
    path = zip_file(tmp_path / "x.pt", one_tensor(), {"0": bytes(8)})
    whole = bytearray(path.read_bytes())
    end = whole.rfind(b"PK\x05\x06")
    filler = b"PK\x03\x04" + bytes(9 << 20)
    struct.pack_into("<I", whole, end + 12, len(filler))
    path.write_bytes(filler + whole)
    assert "its directory claims 9,437,188 bytes" in refusal(path)
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 1, 1, len(filler), 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, len(filler) + end, 1)
    path.write_bytes(whole[:end] + filler + record + locator + whole[end:])
    assert "its directory claims 9,437,188 bytes" in refusal(path)


def test_other_archives_are_told_apart(tmp_path):
    good = one_tensor()
    path = tmp_path / "x.pt"
    assert "TorchScript" in refusal(zip_file(path, good, extra=[("x/constants.pkl", b"")]))
    assert "byte order" in refusal(zip_file(path, good, extra=[("x/byteorder", b"big")]))
    assert "2 files data.pkl" in refusal(zip_file(path, good, extra=[("y/data.pkl", good)]))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("notes.txt", "x")
    assert "0 files data.pkl" in refusal(path)
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("x/data.pkl", good)
        archive.writestr("x/data.pkl", good)
    assert "two files of one name" in refusal(path)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        (b"\n<!DOCTYPE html><html>", "an HTML or XML page, as a failed download leaves; remove it"),
        (bytes(257) + b"ustar" + bytes(300), "a tar or gzip archive"),
        (gzip.compress(b"x", mtime=0), "a tar or gzip archive"),
        (struct.pack("<Q", 20) + b'{"a":1}', "safetensors"),
        (pickle.dumps({"a": 1}), "a pickle of another kind"),
        (b"PK", "2 bytes that begin with b'PK'"),
        (b"PK\x03\x04", "truncated or damaged"),
    ],
)
def test_other_files_are_named_for_what_they_are(tmp_path, content, says):
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    assert says in refusal(path)


def test_a_missing_file_is_the_system_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch(tmp_path / "gone.pt")


@pytest.mark.parametrize("name", FILES)
def test_every_truncation_is_refused(tmp_path, name):
    whole = (GOLDEN / name).read_bytes()
    path = tmp_path / "x.pt"
    for length in range(0, len(whole), 37):
        path.write_bytes(whole[:length])
        refusal(path)


def test_a_flipped_bit_in_a_tensor_is_noticed(tmp_path):
    whole = bytearray((GOLDEN / "torch_zip.pt").read_bytes())
    values = np.load(GOLDEN / "torch_files.npz")["state.float32"].tobytes()
    whole[whole.index(values) + 5] ^= 4
    path = tmp_path / "x.pt"
    path.write_bytes(whole)
    assert "checksum of" in refusal(path)


def mutated(whole, generator):
    content = bytearray(whole)
    for _ in range(generator.integers(1, 4)):
        at = int(generator.integers(len(content)))
        kind = generator.integers(5)
        if kind == 0:
            content[at] ^= 1 << int(generator.integers(8))
        elif kind == 1:
            content[at] = int(generator.integers(256))
        elif kind == 2:
            del content[at : at + int(generator.integers(1, 9))]
        elif kind == 3:
            content[at:at] = generator.bytes(int(generator.integers(1, 9)))
        else:
            content[at : at + 4] = generator.choice(
                [b"\xff" * 4, bytes(4), b"\xff\xff\xff\x7f", b"cos\nsystem\n(R", b"Q", b"tR", b"}b"]
            )
    return bytes(content)


@pytest.mark.parametrize("target", ["zip", "legacy", "pickle"])
def test_mutated_files_are_read_or_refused(tmp_path, target, nothing_runs):
    """2,400 mutations of files that PyTorch wrote: whole files, and pickles alone behind right checksums."""
    generator = np.random.default_rng(["zip", "legacy", "pickle"].index(target))
    whole = (GOLDEN / ("torch_legacy.pt" if target == "legacy" else "torch_zip.pt")).read_bytes()
    with zipfile.ZipFile(GOLDEN / "torch_zip.pt") as archive:
        entries = {name: archive.read(name) for name in archive.namelist()}
    path = tmp_path / "x.pt"
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused = 0
    for _ in range(800):
        if target == "pickle":
            with zipfile.ZipFile(path, "w") as archive:
                for name, content in entries.items():
                    pickled = name.endswith("data.pkl")
                    archive.writestr(name, mutated(content, generator) if pickled else content)
        else:
            path.write_bytes(mutated(whole, generator))
        try:
            read_torch(path)
        except ValueError as error:
            refused += 1
            assert str(error).startswith(f"{path}: ") and len(str(error)) < 600
    assert refused > 300
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000
