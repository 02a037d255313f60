"""Restore photographs in a web browser: a page on this machine to drop them on.

    difflid serve
    python -m difflid_jax.serve --weights=runs/its --port=8000

Prints the page's address. The page shows each photograph before and after, at any strength, and the features
that the network reads; downloads have the same name, format, size, bit depth and metadata, as with `restore`.
Only this machine can open the page, nothing is written to disk, and nothing is fetched from the internet.
Ctrl+C ends it. Needs the extra `web`: pip install 'difflid_jax[web]'.
"""

import importlib.util
import socket
from collections.abc import Sequence

from absl import flags

from difflid_jax.cli import UsageError, definer, refuse_arguments, run, use_compilation_cache
from difflid_jax.images.photos import MAX_PIXELS


def define_flags(values: flags.FlagValues = flags.FLAGS) -> None:
    """Define the program's flags."""
    define = definer(values)
    define("integer", "port", 8642, "Port of the page; 0: any free port.", lower_bound=0, upper_bound=65535)
    define("path", "weights", "haze", "Restorer: a shipped name, a weights folder or a workdir.")
    define("path", "prior", "", "Frozen model, if not the one that the restorer's metadata name.")
    define("integer", "max_pixels", MAX_PIXELS, "Refuse larger photographs.", lower_bound=1)


def main(argv: Sequence[str]) -> None:
    refuse_arguments(argv)
    options = flags.FLAGS
    for package in ("starlette", "uvicorn"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(f"the page needs {package}: pip install 'difflid_jax[web]'")
    with listening(options.port) as at:
        # Imported here so that --help does not wait for JAX to load.
        import uvicorn

        from difflid_jax.restoration.loading import load_restorer
        from difflid_jax.web.app import application

        use_compilation_cache()
        restorer = load_restorer(options.weights, prior=options.prior or None)
        app = application(restorer, max_pixels=options.max_pixels)
        print(f"http://127.0.0.1:{at.getsockname()[1]}  (Ctrl+C ends it)", flush=True)
        settings = {"log_level": "warning", "access_log": False, "ws": "none", "server_header": False}
        uvicorn.Server(uvicorn.Config(app, timeout_graceful_shutdown=1, **settings)).run(sockets=[at])


def listening(port: int) -> socket.socket:
    """A socket on 127.0.0.1. Raises UsageError if the port cannot be used."""
    at = socket.socket()
    at.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        at.bind(("127.0.0.1", port))
        # Otherwise another program could bind the port, too, while the weights are loaded.
        at.listen()
    except OSError as error:
        at.close()
        raise UsageError(f"--port={port}: {error.strerror}; give another, or 0 for any free one") from None
    return at


if __name__ == "__main__":
    run(main, define_flags)
