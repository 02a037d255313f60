"""What two real processes gathered is one set, the same on both, bit for bit."""

import json
import os
import socket
import subprocess
import sys

import numpy as np

from difflid_jax.metrics.fid import FeatureStatistics
from difflid_jax.parallel import bytes_of_all_processes

PROCESS = """
import json, sys
import jax
import numpy as np

index = int(sys.argv[2])
jax.config.update("jax_platforms", "cpu")
jax.distributed.initialize(sys.argv[1], num_processes=2, process_id=index, initialization_timeout=60)
from difflid_jax.metrics.fid import FeatureStatistics
from difflid_jax.parallel import bytes_of_all_processes

shares = bytes_of_all_processes([b"first", b""][index])
features = np.random.default_rng(0).random((10, 3))
statistics = FeatureStatistics.of(features[:7] if index == 0 else features[7:]).of_all_processes()
print(json.dumps({
    "shares": [share.decode() for share in shares],
    "count": statistics.count,
    "products": statistics.products.tolist(),
}))
"""


def test_two_processes_gather_the_whole(tmp_path):
    script = tmp_path / "process.py"
    script.write_text(PROCESS)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(["", *sys.path]), "XLA_FLAGS": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, script, address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for index in range(2)
    ]
    outputs = []
    for process in processes:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        outputs.append(json.loads(out.splitlines()[-1]))

    assert outputs[0] == outputs[1]
    found = outputs[0]
    assert found["shares"] == ["first", ""]
    features = np.random.default_rng(0).random((10, 3))
    wanted = FeatureStatistics.of(features[:7]) + FeatureStatistics.of(features[7:])
    assert found["count"] == 10
    np.testing.assert_array_equal(found["products"], wanted.products)


def test_one_process_alone_gets_its_own_bytes_back():
    assert bytes_of_all_processes(bytes(range(256))) == [bytes(range(256))]
    assert bytes_of_all_processes(b"") == [b""]
