import contextlib
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from difflid_jax import serve


@pytest.fixture(scope="session")
def serving() -> Callable[..., contextlib.AbstractContextManager[int]]:
    """`with serving(restorer, max_pixels=…) as port`: the application, on a free port."""
    uvicorn = pytest.importorskip("uvicorn", reason="needs the extra `web`")
    from difflid_jax.web.app import application

    @contextlib.contextmanager
    def serving(restorer, **options) -> Iterator[int]:
        with serve.listening(0) as at:
            app = application(restorer, **options)
            server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none"))
            thread = threading.Thread(target=server.run, kwargs={"sockets": [at]})
            thread.start()
            while not server.started:
                time.sleep(0.01)
            yield at.getsockname()[1]
            server.should_exit = True
            thread.join()

    return serving


@pytest.fixture(scope="session")
def port(serving, restorer) -> Iterator[int]:
    """The port of a page with the tests' restorer."""
    with serving(restorer, max_pixels=100_000) as port:
        yield port
