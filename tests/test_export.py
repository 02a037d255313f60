import subprocess
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax import export

from difflid_jax.restoration.stablehlo import export_restorer


def images(*shape):
    return np.random.default_rng(0).random(shape, np.float32)


def test_a_written_artefact_restores_any_number_of_any_size(restorer, restorer_folder, tmp_path):
    file = tmp_path / "restorer.stablehlo"
    command = [sys.executable, "-m", "difflid_jax.export", f"--weights={restorer_folder}", f"--output={file}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    artefact = export.deserialize(file.read_bytes())
    hazy = images(2, 64, 64, 3)
    restored = np.asarray(jax.jit(artefact.call)(hazy))
    # One order of the sums in the artefact, another here.
    np.testing.assert_allclose(restored[0], restorer.restore_array(hazy[0]), atol=1e-5)
    assert np.abs(restored - hazy).mean() > 0.03
    with pytest.raises(ValueError, match="Division had remainder"):
        artefact.call(hazy[:, :60])
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "already exists" in again.stderr
    assert len(again.stderr.splitlines()) == 1


def test_of_one_size_needs_no_padding(restorer):
    artefact = export_restorer(restorer, (61, 50))
    hazy = images(1, 61, 50, 3)
    restored = jax.jit(artefact.call)(hazy)
    np.testing.assert_allclose(restored[0], restorer.restore_array(hazy[0]), atol=1e-5)


def test_accelerators_get_no_loops_of_the_cpu(restorer):
    """On any writing platform: the CPU's form takes attention in chunks of 512 KiB a core."""

    def loops(*platforms):
        return export_restorer(restorer, (256, 512), platforms).mlir_module().count("stablehlo.while")

    assert loops("cuda", "tpu") == 0
    assert loops("cpu") > 0


@pytest.mark.usefixtures("as_at_run_time")
def test_a_restorer_that_cannot_leave_sizes_open_says_so():
    class Choosing:
        programs = SimpleNamespace(geometry=SimpleNamespace(common=32))
        params = frozen = None

        def traced(self, params, frozen, x):
            return x if x.shape[1] > 100 else -x

    with pytest.raises(ValueError, match="give one, for instance --size"):
        export_restorer(Choosing())
    assert export_restorer(Choosing(), (64, 64)).out_avals[0].shape[1:] == (64, 64, 3)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--size=0x640", "expected HEIGHTxWIDTH"),
        ("--output=/no/such/folder/file", "in an existing folder"),
    ],
)
def test_bad_flags_are_refused(flag, message):
    command = [sys.executable, "-m", "difflid_jax.export", "--weights=none", "--output=file", flag]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and message in done.stderr
    assert len(done.stderr.splitlines()) == 1
