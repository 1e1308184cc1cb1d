"""The trilinear form: its plain solution against the literal sum, and every rewrite and every form against that."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxnet.kernels import forms, lowering, rewrites, trilinear
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.slots import OPERANDS, shape_of
from tests import oracles
from tests.strategies import Form
from tests.strategies import forms as drawn_forms

TIGHT = {"rtol": 1e-10, "atol": 1e-10}

# Strides that leave inputs unread, crops, padding beyond the window, an even kernel, several members and groups.
CROPPED = Form(Geometry((9,), (3,), (2,), (3,), (1,), (-2,), 2), members=2, batch=2, channels=2, filters=3)
BEYOND = Form(Geometry((3,), (2,), (6,), (2,), (1,), (4,), 4), members=1, batch=1, channels=3, filters=1)
# Cropped before and padded after, which jax 0.10.2's convolution on a CPU gets wrong; and what has it as mirror image.
MIXED = Form(Geometry((8,), (2,), (7,), (1,), (1,), (-1,), 1), members=1, batch=2, channels=8, filters=8)
MIRRORED = Form(Geometry((8,), (2,), (9,), (1,), (1,), (2,), 1), members=1, batch=2, channels=8, filters=8)


def draw_arrays(form, dtype="float64"):
    rng = np.random.default_rng(0)
    return {name: rng.standard_normal(shape).astype(jnp.dtype(dtype)) for name, shape in form.shapes.items()}


def solved(solver, form, slots="yxw", arrays=None):
    """What a solver, ``(slot, a, b, geometry)``, gives for each slot, in one program."""
    arrays = draw_arrays(form) if arrays is None else arrays

    @jax.jit
    def run(arrays):
        return {slot: solver(slot, *(arrays[name] for name in OPERANDS[slot]), form.geometry) for slot in slots}

    return run(arrays)


def assert_same(got, expected, **tolerance):
    for slot, value in got.items():
        assert value.shape == expected[slot].shape
        np.testing.assert_allclose(value, expected[slot], err_msg=f"slot {slot}", **tolerance)


def assert_each_is_plain(solvers, form, slots="yxw"):
    """All of them and the plain form in one program."""
    solvers = (forms.plain, *solvers)

    def each(*operands):
        return [solver(*operands) for solver in solvers]

    for slot, (expected, *found) in solved(each, form, slots).items():
        for i, value in enumerate(found):
            assert value.shape == expected.shape
            np.testing.assert_allclose(value, expected, err_msg=f"slot {slot}, solver {i}", **TIGHT)


def through(rewrite):
    """A solver that rewrites the form, and has what comes of it solved as it stands."""
    return lambda slot, a, b, geometry: rewrites.solve(rewrite, slot, a, b, geometry, forms.plain)


def literal_sums(x, w, y, geometry):
    """The gradient of T by each array: its sum over members, b, j, k, o and c written out."""
    groups, filters = geometry.groups, w.shape[-1] // geometry.groups
    sums = {"x": np.zeros(x.shape), "w": np.zeros(w.shape), "y": np.zeros(y.shape)}
    numbers = list(zip(geometry.strides, geometry.dilation, geometry.before, strict=True))
    for n, b, o, c in itertools.product(*map(range, (*x.shape[:2], w.shape[-1], w.shape[-2]))):
        channel = o // filters * (x.shape[-1] // groups) + c
        for j, k in itertools.product(oracles.positions(geometry.outputs), list(oracles.positions(geometry.size))):
            i = tuple(s * j_ + d * k_ - p for j_, k_, (s, d, p) in zip(j, k, numbers, strict=True))
            if all(0 <= i_ < length for i_, length in zip(i, geometry.lengths, strict=True)):
                at_x, at_w, at_y = (n, b, *i, channel), (n, *k, c, o), (n, b, *j, o)
                sums["x"][at_x] += w[at_w] * y[at_y]
                sums["w"][at_w] += x[at_x] * y[at_y]
                sums["y"][at_y] += x[at_x] * w[at_w]
    return sums


@settings(max_examples=6)
@example(CROPPED)
@example(BEYOND)
@given(drawn_forms(kernel_size=3))
def test_the_plain_form_is_the_literal_sum(form):
    with jax.enable_x64(True):
        arrays = draw_arrays(form)
        assert_same(solved(forms.plain, form), literal_sums(**arrays, geometry=form.geometry), **TIGHT)


@pytest.mark.parametrize("slot", OPERANDS)
@given(form=drawn_forms())
def test_shapes_are_those_of_the_three_arrays(slot, form):
    assert shape_of(slot, *(form.shapes[name] for name in OPERANDS[slot]), form.geometry) == form.shapes[slot]


def every_packing(form):
    geometry = form.geometry
    return [rewrites.packed(geometry, n) for n in range(1, geometry.groups + 1) if geometry.groups % n == 0]


def every_fold(form):
    (outputs,) = form.geometry.outputs
    return [rewrites.folded(form.geometry, n) for n in range(1, outputs + 1) if outputs % n == 0]


REWRITES = {
    "padded": (lambda form: [rewrites.padded(form.geometry)], {}),
    "mirrored": (lambda form: [rewrites.mirrored(form.geometry)], {"strides": 1}),
    "stuffed_kernel": (lambda form: [rewrites.stuffed_kernel(form.geometry)], {}),
    "phases_apart": (lambda form: [rewrites.phases_apart(form.geometry)], {"strides": 1}),
    "polyphase": (
        lambda form: [rewrites.polyphase(form.geometry, align=align) for align in (False, True)],
        {"dilation": 1},
    ),
    "ungrouped": (lambda form: [rewrites.ungrouped(form.geometry)], {}),
    "packed": (every_packing, {}),
    "folded": (every_fold, {"dilation": 1, "ndim": 1}),
    "merged": (lambda form: [rewrites.merged(form.geometry, form.members)], {}),
    "patches": (lambda form: [rewrites.patches(form.geometry)], {"groups": 1}),
    "flattened": (
        lambda form: [rewrites.flattened(form.geometry)],
        {"strides": 1, "kernel_size": 1, "bare": True},
    ),
    "rows": (lambda form: [rewrites.rows(form.geometry)], {"groups": 1, "ndim": 2}),
}


@pytest.mark.parametrize("name", REWRITES)
@settings(max_examples=5)
@given(data=st.data())
def test_a_rewrite_changes_no_slot(name, data):
    make, limits = REWRITES[name]
    form = data.draw(drawn_forms(**limits))
    with jax.enable_x64(True):
        assert_each_is_plain(map(through, make(form)), form)


@pytest.mark.parametrize("form", [CROPPED, BEYOND], ids=["cropped", "beyond"])
@pytest.mark.parametrize("name", [name for name, (_, limits) in REWRITES.items() if limits.keys() <= {"dilation"}])
@pytest.mark.usefixtures("x64")
def test_a_rewrite_changes_no_slot_of_an_awkward_form(name, form):
    assert_each_is_plain(map(through, REWRITES[name][0](form)), form)


def by_phases(slot, a, b, geometry):
    return forms.by_phases(a, b, geometry, lowering.vendor.solve)


FORMS = {
    "by phases": (by_phases, "x", {"groups": 1, "dilation": 1}),
    "by phases of images": (by_phases, "x", {"groups": 1, "dilation": 1, "ndim": 2}),
    "dense": (forms.dense, "yw", {"groups": 1, "members": 1}),
    "shifted": (forms.shifted, "yw", {"members": 1}),
    "dot": (forms.dot, "yxw", {"groups": 1, "strides": 1, "kernel_size": 1, "bare": True}),
    "cpu": (lowering.cpu.solve, "yxw", {}),
    "gpu": (lowering.gpu.solve, "yxw", {}),
    "vendor": (lowering.vendor.solve, "yxw", {}),
}


@pytest.mark.parametrize("name", FORMS)
@settings(max_examples=5)
@given(data=st.data())
def test_a_form_is_the_plain_one(name, data):
    solver, slots, limits = FORMS[name]
    form = data.draw(drawn_forms(**limits))
    with jax.enable_x64(True):
        assert_each_is_plain([solver], form, slots)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.usefixtures("x64")
def test_once_changes_no_bit(dtype):
    kind = np.finfo(dtype)
    values = np.array([0.0, -0.0, 1 + kind.eps, kind.tiny, kind.max, -kind.max, np.inf, -np.inf, np.nan, 0.1], dtype)
    assert np.asarray(jax.jit(forms.once)(values)).tobytes() == values.tobytes()


def a_form(length, size, stride=1, before=0, after=0, groups=1, members=1, channels=1, filters=1):
    outputs = (length + before + after - size) // stride + 1
    geometry = Geometry((length,), (size,), (outputs,), (stride,), (1,), (before,), groups)
    return Form(geometry, members, 2, channels, filters)


def an_image(channels, filters, stride=1, groups=1, size=(3, 3), lengths=(6, 7), dilation=1):
    before = tuple(dilation * (k - 1) // 2 for k in size)
    outputs = tuple((n - 1) // stride + 1 for n in lengths)
    geometry = Geometry(lengths, size, outputs, (stride, stride), (dilation, dilation), before, groups)
    return Form(geometry, members=1, batch=2, channels=channels, filters=filters)


# What the drawn forms are too small to reach: one form for each choice that the lowering makes by a size.
CHOICES = {
    "more groups than are unrolled": a_form(7, 3, groups=66, channels=2, filters=3, before=1),
    "a prime number of them": a_form(5, 2, groups=67, channels=3, filters=2),
    "groups, eight at once": a_form(9, 3, groups=24, channels=9, filters=10, before=1, after=1),
    "groups, five at once, strided": a_form(11, 3, stride=2, groups=25, channels=9, filters=9, before=1),
    "groups, a prime number": a_form(7, 2, groups=19, channels=9, filters=9),
    "groups, eight at once, of members": a_form(7, 3, groups=24, members=2, channels=9, filters=9, before=1),
    "strided groups, folded by 2 and 4": a_form(60, 41, stride=4, before=20, after=21, groups=2, channels=2, filters=8),
    "folded by 4": a_form(56, 41, stride=4, before=10, after=9, groups=3, channels=1, filters=5),
    "narrow groups, packed": a_form(9, 3, groups=6, channels=3, filters=2, before=1, after=1),
    "narrow groups, packed and folded": a_form(12, 5, groups=4, channels=4, filters=3, before=2, after=2),
    "narrow groups, packed into one": a_form(9, 4, groups=2, channels=3, filters=4),
    "1x1, many rows": a_form(208, 1, channels=3, filters=2),
    "groups of 1x1": a_form(9, 1, groups=2, channels=9, filters=5),
    "wide groups of 1x1": a_form(5, 1, groups=3, channels=24, filters=22),
    "narrow groups, folded by 8": a_form(16, 7, groups=4, channels=4, filters=3, before=3, after=3),
    "narrow groups, folded, without padding": a_form(18, 3, groups=2, channels=12, filters=16),
    "depthwise, more taps than are unrolled": a_form(40, 33, before=16, after=16, groups=3),
    "depthwise, nine taps": a_form(12, 9, before=4, after=4, groups=3),
    "depthwise, strided": a_form(23, 7, stride=2, before=3, after=3, groups=8),
    "depthwise, strided by much": a_form(33, 9, stride=6, before=2, after=3, groups=5),
    "one channel, padded": a_form(20, 15, before=7, after=7, filters=4),
    "one channel, many taps": a_form(50, 34, before=3, filters=3),
    "one filter": a_form(20, 7, before=3, after=3, channels=4),
    "one channel, one filter": a_form(20, 7, before=3, after=3),
    "strided, most phases short": a_form(13, 5, stride=4, before=2, after=1, channels=2, filters=3),
    "strided, all phases but one short, and nothing before": a_form(14, 4, stride=3, channels=2, filters=3),
    "strided, one tap": a_form(11, 1, stride=3, before=1, channels=2, filters=3),
    "one channel, strided": a_form(20, 6, stride=3, before=2, filters=4),
    "two dimensions, rows as channels": an_image(channels=3, filters=32),
    "two dimensions, rows as channels, in its mirror image": an_image(channels=32, filters=3),
    "two dimensions, rows as channels, strided": an_image(stride=2, channels=3, filters=32),
    "two dimensions, more groups than are unrolled": an_image(channels=9, filters=17, groups=5),
    "two dimensions, more groups, strided": an_image(channels=9, filters=8, groups=6, stride=2),
    "two dimensions, more groups, dilated": an_image(channels=3, filters=3, groups=6, dilation=2),
    "two dimensions, depthwise, a loop for w": an_image(1, 1, groups=3, size=(7, 5)),
    "two dimensions, depthwise, a loop, strided": an_image(1, 2, groups=3, size=(9, 9), lengths=(11, 12), stride=2),
    "two dimensions, depthwise, a loop, dilated": an_image(2, 1, groups=2, size=(8, 9), lengths=(9, 6), dilation=2),
    "many members": a_form(9, 3, members=17, channels=2, filters=3, before=1, after=1),
    "many members, strided": a_form(9, 3, stride=2, members=17, channels=2, filters=3, before=1),
    "many members, depthwise": a_form(9, 3, members=17, groups=3, before=1, after=1),
    "members with more taps than are copied": a_form(40, 33, members=2, channels=2, filters=3, before=16),
    "members with many groups": a_form(9, 3, members=9, groups=8, channels=2, filters=3),
}


@pytest.mark.parametrize("form", CHOICES.values(), ids=CHOICES)
@pytest.mark.usefixtures("x64")
def test_every_choice_by_size_is_the_plain_form(form):
    assert_each_is_plain([lowering.cpu.solve, lowering.gpu.solve], form)


PHASES = {
    "three taps": an_image(channels=17, filters=4, stride=2),
    "one of a phase's axes without taps": an_image(channels=16, filters=3, stride=2, size=(1, 5)),
    "a phase without inputs": an_image(channels=16, filters=3, stride=2, lengths=(1, 4)),
    "small": an_image(channels=15, filters=4, stride=2),
    "two taps": an_image(channels=16, filters=4, stride=2, size=(2, 2)),
    "dilated": an_image(channels=16, filters=4, stride=2, dilation=2),
    "three strides": an_image(channels=16, filters=4, stride=3),
}


@pytest.mark.parametrize("name", PHASES)
@pytest.mark.usefixtures("x64")
def test_phases_that_would_be_filled_are_forms_of_their_own(name, monkeypatch):
    form, asked = PHASES[name], []
    by_phases = forms.by_phases
    monkeypatch.setattr(forms, "by_phases", lambda *args: asked.append(args) or by_phases(*args))
    monkeypatch.setattr(lowering.cpu, "FEW_PRODUCTS", 1)
    assert_each_is_plain([lowering.cpu.solve], form)
    assert bool(asked) == (list(PHASES).index(name) < 3)
    monkeypatch.setattr(lowering.cpu, "FEW_PRODUCTS", 10**9)
    asked.clear()
    assert_each_is_plain([lowering.cpu.solve], form, "x")
    assert not asked


def an_empty_form(*, length=0, outputs=0, stride=1, before=0, groups=1, members=1):
    geometry = Geometry((length,), (3,), (outputs,), (stride,), (1,), (before,), groups)
    return Form(geometry, members, batch=2, channels=2, filters=3)


# Without a signal, padded to some outputs; and the other way round, as a transposed convolution has it.
EMPTY = {
    "no input": {"outputs": 3, "before": 4},
    "no input, strided groups": {"outputs": 3, "before": 4, "stride": 2, "groups": 3},
    "no output": {"length": 4},
    "no output, strided": {"length": 4, "stride": 2},
    "no output, groups": {"length": 4, "groups": 2},
}


@pytest.mark.parametrize("members", [1, 2, 17])
@pytest.mark.parametrize("case", EMPTY.values(), ids=EMPTY)
def test_empty_signals_give_nothing_or_zeros(case, members):
    form = an_empty_form(**case, members=members)
    solvers = {"cpu": lowering.cpu.solve, "gpu": lowering.gpu.solve, "vendor": lowering.vendor.solve}

    def each(*operands):
        return {name: solver(*operands) for name, solver in solvers.items()}

    for slot, found in solved(each, form, arrays=draw_arrays(form, "float32")).items():
        for name, value in found.items():
            np.testing.assert_array_equal(value, np.zeros(form.shapes[slot], np.float32), err_msg=f"{name}, {slot}")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("bfloat16", {"rtol": 2**-8, "atol": 1e-5}), ("float32", {"rtol": 2e-5, "atol": 2e-5})],
    ids=["bfloat16", "float32"],
)
@settings(max_examples=4)
@example(form=CROPPED)
@example(form=BEYOND)
@example(form=MIXED)
@example(form=MIRRORED)
@given(form=drawn_forms())
def test_on_a_cpu_sums_are_single_precisions_and_rounded_once(dtype, tolerance, form):
    """From the same numbers in float64, bfloat16's result is one rounding away: u = 2^-8."""
    with jax.default_device(jax.devices("cpu")[0]):
        arrays = draw_arrays(form, dtype)
        got = solved(lowering.cpu.solve, form, arrays=arrays)
    assert all(value.dtype == dtype for value in got.values())
    with jax.enable_x64(True):
        exact = solved(forms.plain, form, arrays={name: np.asarray(v, np.float64) for name, v in arrays.items()})
    assert_same({slot: np.asarray(value, np.float64) for slot, value in got.items()}, exact, **tolerance)


def test_on_a_gpu_the_16_bit_terms_of_overlapping_patches_are_added_in_single_precision():
    form = a_form(64, 9, members=2, channels=16, filters=16, before=4, after=4)
    arrays = draw_arrays(form, "bfloat16")
    got = solved(lowering.gpu.solve, form, "x", arrays=arrays)
    with jax.enable_x64(True):
        exact = solved(forms.plain, form, "x", arrays={n: np.asarray(v, np.float64) for n, v in arrays.items()})
    assert got["x"].dtype == jnp.bfloat16
    assert_same({"x": np.asarray(got["x"], np.float64)}, exact, rtol=2**-8, atol=1e-4)


@settings(max_examples=6)
@example(CROPPED)
@example(BEYOND)
@given(drawn_forms())
def test_the_three_primitives_are_adjoint(form):
    """<conv(x, w), y> = <x, conv_input(y, w)> = <w, conv_kernel(x, y)>, all of them T(x, w, y)."""
    solve = {"y": trilinear.conv, "x": trilinear.conv_input, "w": trilinear.conv_kernel}
    with jax.enable_x64(True):
        arrays = draw_arrays(form)
        results = solved(lambda slot, *operands: solve[slot](*operands), form)
        products = [np.vdot(arrays[slot], results[slot]) for slot in OPERANDS]
        np.testing.assert_allclose(products[1:], products[0], rtol=1e-9, atol=1e-9)
