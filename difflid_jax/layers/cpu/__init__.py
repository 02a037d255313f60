"""Forms of the layers that take less time on a CPU, and the one place that chooses them.

A layer is written in its plain form, which defines it and which accelerators run. `on_cpu` names the
function of this package that computes the same on a CPU. The choice follows the platform that a program is
compiled for, not the one that traces it, so that exported and ahead-of-time compiled programs hold the form
of their own platform. Times in this package were measured on two cores with jax 0.10.2.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
from jax import lax

# `with form("cpu"):` or `with form("plain"):` traces that form for all platforms (tests, benchmarks).
form = jax.make_user_context(default_value=None)


def on_cpu(cpu_form: Callable[..., Any]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorator of a plain form: `cpu_form`, called with the same arguments, replaces it on a CPU."""

    def decorate(plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def call(*args: Any, **kwargs: Any) -> Any:
            if form.value is not None:
                return {"cpu": cpu_form, "plain": plain}[form.value](*args, **kwargs)
            return lax.platform_dependent(
                cpu=lambda: cpu_form(*args, **kwargs), default=lambda: plain(*args, **kwargs)
            )

        return call

    return decorate
