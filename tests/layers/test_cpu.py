"""The forms for CPUs: the same values and gradients as the plain forms, and chosen by the target platform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import export

from difflid_jax.layers.attention import attention
from difflid_jax.layers.convolution import UpConv, convolve, convolve_joined
from difflid_jax.layers.cpu import form, on_cpu
from difflid_jax.layers.cpu.attention import attend
from difflid_jax.network.cim import ContentIntegration
from difflid_jax.network.hae import HazeAwareEnhancement
from difflid_jax.network.self_attention import SelfAttention


def made():
    return {"dtype": jnp.float32, "rngs": nnx.Rngs(0)}


def normal(*shape, key=1):
    return jax.random.normal(jax.random.key(key), shape)


def conv(inputs, outputs, size=3, **options):
    options = {"padding": size // 2, **options}
    return nnx.Conv(inputs, outputs, (size, size), conv_general_dilated=convolve, **options, **made())


def cim():
    return ContentIntegration(8, 5, 2, **made())


def hae():
    return HazeAwareEnhancement(8, 5, **made())


def up():
    return UpConv(6, 3, (3, 3), padding=1, **made())


WINDOW = {"window": (0.25, 0, 1.2, 0.9)}
CASES = {
    "CIM, few keys": (cim, (5, 7, 8), (2, 3, 5)),
    "CIM, many keys": (cim, (5, 7, 8), (8, 9, 5)),
    "HAE, few columns": (hae, (5, 7, 8), (2, 3, 5)),
    "HAE, many columns": (hae, (5, 14, 8), (2, 9, 5)),
    "HAE, a part and padding": (hae, (5, 7, 8), (2, 3, 5)),
    "self-attention": (lambda: SelfAttention(8, 300, 2, **made()), (4, 6, 8), (2, 3, 5)),
    "up": (up, (5, 4, 6)),
    "up, one pixel": (up, (1, 1, 6)),
    "to few channels": (lambda: conv(6, 3), (5, 4, 6)),
    "from few channels": (lambda: conv(3, 6), (5, 6, 3)),
    "small map": (lambda: conv(5, 7), (2, 2, 5)),
    "small map, thin, stride 2": (lambda: conv(5, 7, strides=2), (1, 8, 5)),
    "large map, stride 2": (lambda: conv(5, 7, strides=2), (3, 8, 5)),
}


@pytest.mark.parametrize("case", CASES)
def test_both_forms_have_the_same_values_and_gradients(case, drawn):
    build, *shapes = CASES[case]
    graph, parameters = nnx.split(drawn(build, scale=0.5))
    arrays = [normal(2, *shape, key=i) for i, shape in enumerate(shapes)]
    options = WINDOW if "part" in case else {}

    def value_and_gradients(parameters, arrays):
        def loss(parameters, arrays):
            value = nnx.merge(graph, parameters)(*arrays, **options)
            return sum(jnp.square(x).sum() for x in jax.tree.leaves(value)), value

        return jax.grad(loss, (0, 1), has_aux=True)(parameters, arrays)

    with form("plain"):
        expected = jax.jit(value_and_gradients)(parameters, arrays)
    # On a CPU, as it is chosen by itself.
    with form(None if jax.default_backend() == "cpu" else "cpu"):
        found = jax.jit(value_and_gradients)(parameters, arrays)
    # Float32 sums in another order; some gradients, such as that of the keys' bias, are sums to zero.
    atol = 2e-6 * max(float(jnp.abs(x).max()) for x in jax.tree.leaves(expected))
    for ours, plain in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, plain, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("heads", [1, 4])  # for 64 keys, 4 heads project first
@pytest.mark.parametrize("keys", [4, 64])
def test_attention_to_keys_far_above_the_others_is_the_softmax(keys, heads):
    """Scores on both sides of the bound up to which the softmax goes without a maximum, and far beyond."""
    f, v = jnp.ones((1, 3, 3, 4)), normal(1, 1, keys, 4)
    unchanged = nnx.Linear(4, 4, kernel_init=lambda *_: jnp.eye(4), rngs=nnx.Rngs(0))
    root = (4 // heads) ** 0.5

    def with_gradient(function):
        return jax.jit(lambda k: (function(k), jax.grad(lambda k: jnp.sum(jnp.square(function(k))))(k)))

    found = with_gradient(lambda k: attend(f, k, v, query=unchanged, out=unchanged, heads=heads))
    expected = with_gradient(lambda k: attention(f, k, v, heads=heads))
    # The bound, 560, lies between 500 and 510 for one head (√5/2 · above), 250 and 260 for four (√5 · above).
    for above in (30, 70, 250, 260, 500, 510, 900, 1e6, -1e6):
        k = jnp.zeros((1, 1, keys, 4)).at[0, 0, 1].set(above / root).at[0, 0, 2].set((above - 1) / root)
        (value, gradient), (value_expected, gradient_expected) = found(k), expected(k)
        np.testing.assert_allclose(value, value_expected, rtol=1e-5, atol=1e-6, err_msg=f"{above}")
        np.testing.assert_allclose(gradient, gradient_expected, rtol=1e-4, atol=1e-5, err_msg=f"{above}")


@pytest.mark.parametrize("keys", [(2, 3), (8, 9)])  # few keys fold into the projections, many do not
def test_attention_is_the_same_in_any_chunks(keys, drawn):
    f, k, v = normal(2, 5, 7, 8), normal(2, *keys, 12, key=2), normal(2, *keys, 12, key=3)
    query, out = (drawn(lambda: nnx.Linear(*size, **made()), scale=0.5) for size in ((8, 12), (12, 8)))

    def results(max_scores):
        def attended(f, k, v):
            return attend(f, k, v, query=query, out=out, heads=3, max_scores=max_scores)

        gradients = jax.grad(lambda *x: jnp.square(attended(*x)).sum(), (0, 1, 2))
        return jax.tree.leaves(jax.jit(lambda *x: (attended(*x), gradients(*x)))(f, k, v))

    scores = 3 * keys[0] * keys[1]
    expected = results(1 << 30)
    for queries in (35, 10):  # one image at a time, chunks of an image
        for ours, reference in zip(results(queries * scores), expected, strict=True):
            np.testing.assert_allclose(ours, reference, rtol=1e-4, atol=1e-4)


def test_joined_maps_are_convolved_apart():
    x, kernel, layout = normal(2, 5, 6, 8), normal(1, 1, 8, 4, key=2), ("NHWC", "HWIO", "NHWC")
    apart, joined = (
        function(x, kernel, (1, 1), ((0, 0), (0, 0)), dimension_numbers=layout)
        for function in (convolve_joined, convolve)
    )
    np.testing.assert_allclose(apart, joined, atol=1e-5)


@on_cpu(lambda x: jnp.sin(x) + 1)
def tell(x):
    return jnp.sin(x)


def test_the_form_is_that_of_the_platform_compiled_for():
    """Under gradients, checkpointing, batching and loops, too; on any tracing platform."""

    def program(x):
        def step(x, _):
            return x + jax.vmap(jax.checkpoint(tell))(x), None

        return jax.grad(lambda x: jax.lax.scan(step, x, length=2)[0].sum())(x).sum() + tell(x).sum()

    x = jax.ShapeDtypeStruct((3,), jnp.float32)
    ones = "constant dense<1.000000e+00>"
    texts = {
        platform: jax.jit(tell).trace(x).lower(lowering_platforms=(platform,)).as_text()
        for platform in ("cpu", "cuda", "tpu")
    }
    assert ones in texts["cpu"] and ones not in texts["cuda"] and ones not in texts["tpu"]
    text = jax.jit(program).trace(x).lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.cosine" in text
    if jax.default_backend() == "cpu":
        zero = jnp.zeros(3)
        # 3 · (1 + cos 0) · (1 + cos 1), as tell(0) is 1; and sin 0 + 1 three times.
        np.testing.assert_allclose(jax.jit(program)(zero), 3 * 2 * (1 + np.cos(1)) + 3, rtol=1e-6)
        with form("plain"):
            np.testing.assert_allclose(jax.jit(program)(zero), 3 * 2 * 2, rtol=1e-6)


def test_sizes_may_stay_symbolic(drawn):
    sides = export.symbolic_shape("b, h, w, 8")
    f = jax.ShapeDtypeStruct(sides, jnp.float32)
    for build in (cim, hae):
        graph, parameters = nnx.split(drawn(build))
        run = jax.jit(lambda f, h: nnx.merge(graph, parameters)(f, h))
        h = jax.ShapeDtypeStruct((sides[0], 2, 3, 5), jnp.float32)
        exported = export.export(run, platforms=("cpu", "cuda"))(f, h)
        assert exported.out_avals[0].shape[1:] == sides[1:]
    kernel = jnp.ones((3, 3, 8, 7))
    numbers = {"dimension_numbers": ("NHWC", "HWIO", "NHWC")}
    run = jax.jit(lambda x: convolve(x, kernel, (1, 1), ((1, 1), (1, 1)), **numbers))
    assert export.export(run)(f).out_avals[0].shape[1:3] == sides[1:3]
