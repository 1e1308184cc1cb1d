"""oneDNN's calls on a CPU: which problems are one, when none is, and that they are right where a processor has them."""

import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from jax.sharding import PartitionSpec as P

from jaxnet import kernels, layers, losses, optimizers
from jaxnet.kernels import forms, lowering, trilinear
from jaxnet.kernels.geometry import Geometry
from jaxnet.kernels.lowering import called, onednn
from jaxnet.kernels.slots import OPERANDS
from jaxnet.training import identity

pytestmark = pytest.mark.usefixtures("on_the_cpu")

SOLVE = {"y": trilinear.conv, "x": trilinear.conv_input, "w": trilinear.conv_kernel}
DTYPES = pytest.mark.parametrize("dtype", ["float32", "bfloat16"])


def geometry(lengths, size, *, strides=1, dilation=1, before=0, after=0, groups=1):
    ndim = len(lengths)
    outputs = tuple(
        (n + before + after - dilation * (k - 1) - 1) // strides + 1 for n, k in zip(lengths, size, strict=True)
    )
    return Geometry(lengths, size, outputs, (strides,) * ndim, (dilation,) * ndim, (before,) * ndim, groups)


def shapes(numbers, channels, filters, batch=4, members=1):
    """Of a group's channels and filters."""
    return {
        "x": (members, batch, *numbers.lengths, channels * numbers.groups),
        "w": (members, *numbers.size, channels, filters * numbers.groups),
        "y": (members, batch, *numbers.outputs, filters * numbers.groups),
    }


@pytest.fixture
def everywhere(monkeypatch):
    """As on a processor that has the calls; programs are lowered, and need not run."""
    monkeypatch.setattr(onednn, "_works", lambda dtype: dtype in ("float32", "bfloat16"))
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx512f", "avx512_bf16"})


def need(dtype):
    if not onednn._works(dtype):
        pytest.skip(f"this processor, or this jaxlib, has no fast call of {dtype}")


def calls(text):
    """How often each is called."""
    found = re.findall(r"@__onednn\$(\w+)", text)
    return {name: found.count(name) for name in set(found)}


def lowered(slot, of, numbers, dtype):
    operands = [jax.ShapeDtypeStruct(of[name], dtype) for name in OPERANDS[slot]]
    return jax.jit(lambda a, b: SOLVE[slot](a, b, numbers)).lower(*operands).as_text()


# Name: geometry, channels and filters of a group, slot, dtype, calls.
ONE = {"convolution": 1}
PROBLEMS = {
    "y": (geometry((64,), (3,), before=1, after=1), 16, 16, "y", "float32", ONE),
    "x, its mirror image": (geometry((64,), (3,), before=1, after=1), 16, 16, "x", "float32", ONE),
    "x, strided": (geometry((64,), (4,), strides=2, before=1, after=1), 16, 16, "x", "float32", ONE),
    "w of an image": (geometry((8, 8), (3, 3), before=1, after=1), 8, 16, "w", "float32", ONE),
    "w, wide and narrow": (geometry((64,), (3,), before=1, after=1), 64, 32, "w", "float32", ONE),
    "w, narrow": (geometry((64,), (3,), before=1, after=1), 16, 16, "w", "float32", {}),
    "w, one tap": (geometry((64,), (1,)), 16, 16, "w", "float32", {"matmul": 1}),
    "y, one tap": (geometry((64,), (1,)), 16, 16, "y", "float32", {}),
    "y, one filter": (geometry((64,), (3,)), 16, 1, "y", "float32", {}),
    "y, one channel": (geometry((64,), (3,)), 1, 16, "y", "float32", {}),
    "groups": (geometry((64,), (3,), groups=4), 8, 8, "y", "float32", ONE),
    "groups, x": (geometry((64,), (3,), groups=4), 8, 8, "x", "float32", ONE),
    "groups of many taps": (geometry((64,), (41,), groups=4), 16, 16, "y", "float32", {"convolution": 4}),
    "depthwise": (geometry((64,), (3,), groups=4), 1, 1, "y", "float32", {}),
    "depthwise image": (geometry((8, 8), (3, 3), groups=16), 1, 1, "y", "float32", {}),
    "nearly depthwise": (geometry((64,), (3,), groups=16), 2, 2, "x", "float32", {}),
    "groups of volumes": (geometry((4, 4, 4), (2, 2, 2), groups=2), 8, 8, "y", "float32", {}),
    "volume": (geometry((4, 4, 4), (2, 2, 2)), 3, 4, "y", "float32", ONE),
    "volume, w": (geometry((4, 4, 4), (2, 2, 2)), 3, 4, "w", "float32", ONE),
    "volume, x, strided": (geometry((5, 5, 5), (3, 3, 3), strides=2), 3, 4, "x", "float32", ONE),
    "y, 16 bits": (geometry((64,), (3,)), 16, 16, "y", "bfloat16", ONE),
    "x, 16 bits": (geometry((64,), (3,)), 16, 16, "x", "bfloat16", ONE),
    "w, 16 bits": (geometry((64,), (5,)), 16, 32, "w", "bfloat16", ONE),
    "w, 16 bits, far apart": (geometry((64,), (3,), dilation=9), 32, 32, "w", "bfloat16", {"matmul": 3}),
    "w, 16 bits, a dilated image": (geometry((12, 12), (3, 3), dilation=2), 32, 32, "w", "bfloat16", {}),
    "y, 16 bits, one tap": (geometry((64,), (1,)), 16, 16, "y", "bfloat16", ONE),
    "x, 16 bits, one tap": (geometry((64,), (1,)), 16, 16, "x", "bfloat16", {"matmul": 1}),
    "w, 16 bits, groups": (geometry((64,), (8,), strides=4, groups=2), 4, 16, "w", "bfloat16", {"convolution": 2}),
    "w, 16 bits, many groups": (
        geometry((64,), (8,), strides=4, groups=24),
        4,
        16,
        "w",
        "bfloat16",
        {"convolution": 24},
    ),
    "w, many groups": (geometry((64,), (8,), strides=4, groups=24), 4, 16, "w", "float32", {"convolution": 8}),
    "y, 16 bits, wide groups": (geometry((64,), (3,), groups=4), 64, 64, "y", "bfloat16", {"convolution": 4}),
    "x, 16 bits, wide groups": (geometry((64,), (3,), groups=2), 64, 64, "x", "bfloat16", {"convolution": 2}),
    "y, 16 bits, groups of an image": (geometry((8, 8), (3, 3), groups=2), 32, 32, "y", "bfloat16", {"convolution": 2}),
    "x, 16 bits, strided groups": (
        geometry((64,), (4,), strides=2, groups=2),
        32,
        32,
        "x",
        "bfloat16",
        {"convolution": 2},
    ),
    "y, 16 bits, narrow groups": (geometry((64,), (3,), groups=4), 32, 64, "y", "bfloat16", ONE),
    "y, 16 bits, more groups": (geometry((64,), (3,), groups=5), 64, 64, "y", "bfloat16", ONE),
    "float16 is computed in float32": (geometry((64,), (3,)), 16, 16, "y", "float16", ONE),
    "float64": (geometry((64,), (3,)), 16, 16, "y", "float64", {}),
}


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("name", PROBLEMS)
def test_which_problems_are_calls(name):
    numbers, channels, filters, slot, dtype, expected = PROBLEMS[name]
    with jax.enable_x64(dtype == "float64"):
        assert calls(lowered(slot, shapes(numbers, channels, filters), numbers, dtype)) == expected


@pytest.mark.usefixtures("everywhere")
def test_members_are_calls_of_their_own():
    numbers = geometry((64,), (3,))
    for dtype in ("float32", "bfloat16"):
        assert calls(lowered("y", shapes(numbers, 16, 16, members=3), numbers, dtype)) == {"convolution": 3}


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("slot", ["y", "x"])
def test_wide_groups_of_members_are_computed_in_float32(slot):
    numbers = geometry((64,), (3,), groups=4)
    program = lowered(slot, shapes(numbers, 64, 64, members=2), numbers, "bfloat16")
    assert calls(program) == {"convolution": 2}  # all groups of a member in one, which 16 bits never are


def descriptions(text):
    """What each call is told, as XLA reads it."""
    quoted = re.findall(r'backend_config = "(.*?)",? ', text)
    return [json.loads(re.sub(r"\\([0-9A-F]{2})", lambda digits: chr(int(digits[1], 16)), one)) for one in quoted]


drawn = st.fixed_dictionaries(
    {
        "ndim": st.integers(1, 3),
        "size": st.sampled_from([1, 2, 3, 5, 8]),
        "strides": st.integers(1, 3),
        "dilation": st.sampled_from([1, 1, 2, 5, 18]),
        "before": st.integers(-1, 4),
        "after": st.integers(-1, 4),
        "groups": st.sampled_from([1, 1, 2, 4, 80]),
        "channels": st.sampled_from([1, 2, 3, 8, 16, 33]),
        "filters": st.sampled_from([1, 2, 8, 17, 32]),
        "batch": st.sampled_from([1, 2, 3, 8]),
        "members": st.sampled_from([1, 1, 2, 17]),
    }
)


def problem(draw):
    """The geometry that was drawn, its shapes, and whether it is none."""
    d = draw["dilation"] if draw["ndim"] < 3 else min(2, draw["dilation"])
    size = draw["size"] if draw["ndim"] == 1 else min(3, draw["size"])
    extent = d * (size - 1) + 1
    before, after = (min(n, extent) for n in (draw["before"], draw["after"]))
    length = max(1, extent - before - after + {1: 11, 2: 4, 3: 2}[draw["ndim"]], 1 - min(before, 0) - min(after, 0))
    groups = draw["groups"] if draw["members"] < 17 else 1
    numbers = geometry(
        (length,) * draw["ndim"],
        (size,) * draw["ndim"],
        strides=draw["strides"],
        dilation=d,
        before=before,
        after=after,
        groups=groups,
    )
    channels, filters = (min(draw[name], 2 if groups > 4 else 99) for name in ("channels", "filters"))
    return numbers, shapes(numbers, channels, filters, draw["batch"], draw["members"])


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_oneDNN_has_no_fast_code_for_or_wrong_code_is_no_call(dtype):
    seen = set()

    @settings(max_examples=60, deadline=None)
    @given(drawn, st.sampled_from("xwy"))
    def check(draw, slot):
        seen.update(_kinds(draw, slot, dtype))

    check()
    assert seen >= ({(1, 3), (1, 4), (1, 5)} if dtype == "float32" else {(1, 3), (1, 4)})  # groups, dimensions


def _kinds(draw, slot, dtype):
    numbers, of = problem(draw)
    text = lowered(slot, of, numbers, dtype)
    types = re.findall(r"@__onednn\$convolution\(.*?\) .*? : \(tensor<[x0-9]+x(\w+)>, tensor<([x0-9]+)x\w+>\)", text)
    told = [one["onednn_conv_config"] for one in descriptions(text) if "onednn_conv_config" in one]
    assert len(types) == len(told)
    for (kind, kernel), one in zip(types, told, strict=True):
        channels, filters = map(int, kernel.split("x")[-2:])
        groups = int(one["feature_groups"])
        assert groups == 1 or (kind == "f32" and channels * filters // groups > 4 and int(one["dims"]) <= 4)
        assert kind == "f32" or (int(one["dims"]) <= 4 and channels > 1)
        yield groups, int(one["dims"])


@pytest.mark.parametrize("slot", ["y", "x", "w"])
@DTYPES
def test_calls_give_the_sum_of_float64(slot, dtype):
    """Of integers, every sum of which float32 has exactly, and bfloat16 seldom: rounded once, whatever the order."""
    need(dtype)
    called = 0

    @settings(max_examples=40, deadline=None)
    @given(drawn, st.integers(0, 2**31))
    def check(draw, seed):
        nonlocal called
        numbers, of = problem(draw)
        rng = np.random.default_rng(seed)
        a, b = (rng.integers(-20, 21, of[name]).astype(np.float64) for name in OPERANDS[slot])
        with jax.enable_x64(True):
            exact = np.asarray(forms.plain(slot, jnp.asarray(a), jnp.asarray(b), numbers))
        program = jax.jit(lambda a, b: SOLVE[slot](a, b, numbers)).lower(*(jnp.asarray(v, dtype) for v in (a, b)))
        called += bool(calls(program.as_text()))
        found = program.compile()(*(jnp.asarray(v, dtype) for v in (a, b)))
        np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.dtype(dtype)))

    check()
    assert called > 5


# What the rules once took for a call, or did not: name, slot, geometry, channels, filters, batch, members.
FOUND = {
    "windows before the input": ("w", geometry((3, 8), (1, 3), strides=8, before=2, after=8), 4, 8, 2, 1),
    "windows after the input": ("w", Geometry((3,), (2,), (8,), (1,), (1,), (-5,), 1), 4, 8, 2, 1),
    "windows before it": ("y", Geometry((3,), (2,), (8,), (1,), (1,), (10,), 1), 4, 8, 2, 1),
    "many members": ("x", geometry((64,), (3,), before=1, after=1), 16, 16, 4, 17),
    "groups of dilated, strided images": (
        "w",
        geometry((64, 64), (3, 3), strides=2, dilation=2, before=2, after=2, groups=2),
        32,
        32,
        2,
        1,
    ),
    "a tap in padding alone": ("w", Geometry((5, 2), (3, 4), (5, 2), (1, 1), (1, 1), (1, 0), 1), 8, 17, 4, 1),
    "a tap in padding before the input": (
        "w",
        Geometry((7, 1), (3, 5), (3, 1), (2, 3), (1, 1), (1, 1), 1),
        16,
        17,
        8,
        1,
    ),
    "phases that would be filled": ("x", geometry((65, 64), (3, 3), strides=2, before=1, after=1), 64, 64, 1, 1),
    "an image of few channels": ("w", geometry((9, 9), (3, 3), before=1, after=1), 3, 17, 4, 1),
    "a cropped image": ("w", Geometry((9, 9), (2, 2), (6, 7), (1, 1), (1, 1), (-1, -1), 1), 8, 16, 4, 1),
    "an image, strided and cropped": ("w", Geometry((9, 9), (2, 2), (3, 3), (2, 2), (1, 1), (-1, -1), 1), 8, 16, 4, 1),
    "a signal, four channels beside each other": ("w", geometry((33,), (4,), before=2, after=1), 32, 16, 8, 1),
    "wide groups": ("y", geometry((33,), (3,), before=1, after=1, groups=2), 64, 64, 2, 1),
    "wide groups, x": ("x", geometry((33,), (3,), before=1, after=1, groups=3), 64, 64, 2, 1),
    "wide groups, strided, x": ("x", geometry((32,), (4,), strides=2, before=1, after=1, groups=2), 32, 32, 2, 1),
    "wide groups of images": ("y", geometry((9, 8), (3, 3), before=1, after=1, groups=4), 32, 32, 2, 1),
    "wide groups of strided images": (
        "x",
        geometry((9, 8), (3, 3), strides=2, before=1, after=1, groups=2),
        32,
        32,
        2,
        1,
    ),
    "groups of one example": ("w", geometry((32, 32), (3, 3), strides=2, groups=2), 32, 32, 1, 1),
    "y, one tap": ("y", geometry((64,), (1,)), 8, 32, 4, 1),
    "x, one tap": ("x", geometry((64,), (1,)), 8, 32, 4, 1),
    "w, one tap": ("w", geometry((64,), (1,)), 8, 32, 4, 1),
    "more groups than are taken apart": ("w", geometry((64,), (5,), strides=2, groups=80), 4, 4, 2, 1),
}


@DTYPES
@pytest.mark.parametrize("name", FOUND)
def test_problems_at_the_edge_of_the_rules(name, dtype):
    need(dtype)
    slot, numbers, channels, filters, batch, members = FOUND[name]
    of = shapes(numbers, channels, filters, batch, members)
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.integers(-20, 21, of[one]), dtype) for one in OPERANDS[slot])
    if "windows" in name:
        exact = np.zeros(of[slot])
    else:
        with jax.enable_x64(True):
            exact = np.asarray(forms.plain(slot, a.astype(jnp.float64), b.astype(jnp.float64), numbers))
    found = jax.jit(lambda a, b: SOLVE[slot](a, b, numbers))(a, b)
    np.testing.assert_array_equal(found, exact.astype(np.float32).astype(jnp.dtype(dtype)))


image = geometry((9, 9), (3, 3), before=1, after=1)
signal = geometry((64,), (3,), before=1, after=1)
# Geometry, channels, batch, dtype, and how many channels lie along the last axis of the kernel's gradient.
BESIDE = {
    "an image": (image, 16, 4, "float32", 16),
    "an image in 16 bits": (image, 3, 4, "bfloat16", 3),
    "an image of few channels": (image, 3, 4, "float32", 1),
    "strided": (geometry((9, 9), (3, 3), strides=2), 16, 4, "float32", 16),
    "a tap in padding after the input": (
        Geometry((5, 2), (3, 4), (5, 2), (1, 1), (1, 1), (1, 0), 1),
        16,
        4,
        "bfloat16",
        1,
    ),
    "a tap in padding before it": (Geometry((5, 2), (3, 4), (5, 2), (1, 1), (1, 1), (1, 3), 1), 16, 4, "bfloat16", 1),
    "taps in padding on both sides": (
        Geometry((7, 1), (3, 5), (3, 1), (2, 3), (1, 1), (1, 1), 1),
        16,
        4,
        "bfloat16",
        1,
    ),
    "a signal": (signal, 16, 4, "float32", 1),
    "a signal in 16 bits": (signal, 16, 8, "bfloat16", 4),
    "a signal of more examples": (signal, 16, 9, "bfloat16", 1),
    "a signal of odd channels": (signal, 18, 8, "bfloat16", 1),
    "a signal, strided": (geometry((64,), (4,), strides=2), 16, 4, "bfloat16", 1),
    "a signal, dilated": (geometry((64,), (3,), dilation=2), 16, 4, "bfloat16", 1),
    "a volume": (geometry((4, 4, 4), (2, 2, 2)), 16, 4, "float32", 1),
}


@pytest.mark.parametrize("name", BESIDE)
def test_channels_that_lie_beside_each_other(name, monkeypatch):
    numbers, channels, batch, dtype, expected = BESIDE[name]
    of = shapes(numbers, channels, 16, batch)
    asked = []

    def convolution(x, w, numbers):
        asked.append((x.shape, numbers))
        return jnp.zeros((1, x.shape[1], *numbers.outputs, w.shape[-1]), x.dtype)

    monkeypatch.setattr(onednn, "convolution", convolution)
    operands = [jax.ShapeDtypeStruct(of[name], dtype) for name in OPERANDS["w"]]
    taps = jax.eval_shape(lambda a, b: called.kernel("w", a, b, numbers), *operands)
    ((shape, exchanged),) = asked
    assert taps.shape == of["w"]
    assert shape == (1, channels // expected, *numbers.lengths[:-1], numbers.lengths[-1] * expected, batch)
    assert exchanged.outputs[-1] == numbers.size[-1] * expected
    assert exchanged.after[-1] == numbers.after[-1] * expected


@pytest.mark.usefixtures("everywhere")
def test_more_groups_than_are_taken_apart_are_packed():
    numbers = geometry((64,), (5,), strides=2, groups=80)
    assert 0 < calls(lowered("w", shapes(numbers, 4, 4), numbers, "bfloat16"))["convolution"] <= 64


@pytest.mark.parametrize("wrong", ["convolution", "product"])
@pytest.mark.parametrize("how", ["numbers", "raises"])
def test_a_call_that_is_wrong_is_not_used(wrong, how, monkeypatch):
    def convolution(x, w, numbers):
        return forms.plain("y", x, w, numbers)

    def product(a, b, *, transpose_a=False, transpose_b=False):
        return (a.mT if transpose_a else a) @ (b.mT if transpose_b else b)

    right = {"convolution": convolution, "product": product}
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx512f"})
    for name, function in right.items():
        monkeypatch.setattr(onednn, name, function)
    assert onednn._tried.__wrapped__("float32")

    def spoiled(*operands, **options):
        if how == "raises":
            raise RuntimeError("no such call")
        result = right[wrong](*operands, **options)
        return result.at[(-1,) * result.ndim].add(1)

    monkeypatch.setattr(onednn, wrong, spoiled)
    assert not onednn._tried.__wrapped__("float32")


def test_the_switch_and_versions_that_were_not_tried(monkeypatch):
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx512f"})
    monkeypatch.setattr(onednn, "_is_right", lambda dtype: True)
    monkeypatch.delenv(onednn.SWITCH, raising=False)
    works = onednn._tried.__wrapped__
    for version, expected in {
        "0.9.9": False,
        "0.10.2": True,
        "0.12.0.1": True,
        "0.13.0": False,
        "1.10.0": False,
    }.items():
        monkeypatch.setattr("jax.lib.__version__", version)
        assert works("float32") == expected
    monkeypatch.setenv(onednn.SWITCH, "1")
    assert works("float32")
    monkeypatch.setattr("jax.lib.__version__", "0.12.0")
    monkeypatch.setenv(onednn.SWITCH, "0")
    assert not works("float32")


def test_processors(monkeypatch, tmp_path):
    def flags(words, machine="x86_64"):
        (tmp_path / "cpuinfo").write_text(f"vendor_id\t: x\nflags\t\t: {words}\n\nflags\t\t: {words}\n")
        return found(machine)

    def found(machine="x86_64"):
        monkeypatch.setattr(onednn, "Path", lambda _: tmp_path / "cpuinfo")
        monkeypatch.setattr(onednn.platform, "machine", lambda: machine)
        monkeypatch.setattr(onednn, "_instructions", instructions)
        dtypes = ("float32", "bfloat16", "float16", "float64")
        return [[rule(dtype) for dtype in dtypes] for rule in (onednn._convolves, onednn._multiplies)]

    instructions = onednn._instructions.__wrapped__
    none, single, both = ([False] * 4, [True, False, False, False], [True, True, False, False])
    assert flags("fpu avx2 avx512f avx512_bf16") == [both, both]
    assert flags("fpu avx2 avx512f") == [single, single]
    assert flags("fpu avx2 avx512fp16x") == [single, none]
    assert flags("fpu avx avx2x") == [none, none]
    assert flags("fpu avx512f amx_bf16") == [both, both]
    assert flags("fpu avx512f avx512_bf16", machine="aarch64") == [none, none]
    (tmp_path / "cpuinfo").write_text("processor : 0")  # as some sandboxes have it
    assert found() == [none, none]
    (tmp_path / "cpuinfo").unlink()
    assert found() == [none, none]


def test_a_processor_without_fast_products(monkeypatch):
    """With AVX2 alone, convolutions in float32 are calls, those of 16 bits too, and products are not."""
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx2"})
    monkeypatch.setattr(onednn, "_works", lambda dtype: onednn._convolves(dtype))
    names = (
        "y",
        "w of an image",
        "volume",
        "y, 16 bits",
        "groups",
        "w, one tap",
        "x, 16 bits, one tap",
        "w, 16 bits, far apart",
    )
    numbers = {name: PROBLEMS[name] for name in names}
    found = {
        name: calls(lowered(slot, shapes(geometry, channels, filters), geometry, dtype))
        for name, (geometry, channels, filters, slot, dtype, _) in numbers.items()
    }
    packed = {"groups": {"convolution": 2}}  # the two dense ones that four groups are packed into
    assert found == {name: ONE if name in names[:4] else {} for name in names} | packed
    with monkeypatch.context() as patched:
        patched.setattr(onednn, "product", None)  # nor are they tried
        assert onednn._is_right("float32")


X, W = jnp.ones((2, 64, 16)), jnp.ones((3, 16, 16))


def mesh(count=2):
    return jax.make_mesh(
        (count,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices("cpu")[:count]
    )


@pytest.mark.usefixtures("everywhere")
def test_an_exported_program_has_none():
    for f in (jax.jit(kernels.conv), jax.jit(lambda x, w: kernels.conv(x, w))):
        for lowered_before in (True, False):
            if lowered_before:
                assert calls(f.lower(X, W).as_text()) == ONE
            assert "__onednn" not in jax.export.export(f, platforms=["cpu"])(X, W).mlir_module()


@pytest.mark.usefixtures("everywhere")
def test_a_program_that_is_kept_in_a_file_has_none(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(onednn, "_works", lambda dtype: True)
    before = jax.config.jax_compilation_cache_dir
    found = {}
    try:
        for directory, switch in (("/somewhere", ""), ("/somewhere", "1"), (None, "")):
            jax.config.update("jax_compilation_cache_dir", directory)
            monkeypatch.setenv(onednn.SWITCH, switch)
            found[directory, switch] = calls(jax.jit(lambda x, w: kernels.conv(x, w)).lower(X, W).as_text())
    finally:
        jax.config.update("jax_compilation_cache_dir", before)
    assert found == {("/somewhere", ""): {}, ("/somewhere", "1"): ONE, (None, ""): ONE}


def test_the_probe_does_not_see_the_mesh_of_the_user():
    need("float32")
    program = """
import jax, jax.numpy as jnp
from jaxnet import kernels
P = jax.sharding.PartitionSpec
with jax.set_mesh(jax.make_mesh((2,), ("i",), axis_types=(jax.sharding.AxisType.Auto,))):
    f = jax.shard_map(kernels.conv, in_specs=(P("i"), P()), out_specs=P("i"))
    print("__onednn" in jax.jit(f).lower(jnp.ones((2, 64, 16)), jnp.ones((3, 16, 16))).as_text())
"""
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "True", done.stderr


@pytest.mark.usefixtures("everywhere")
@pytest.mark.devices(2)
def test_a_program_that_is_to_be_partitioned_has_none_but_inside_shard_map():
    spread = jax.sharding.NamedSharding(mesh(), P("data"))
    x = jax.device_put(X, spread)
    assert calls(jax.jit(lambda x, w: kernels.conv(x, w)).lower(x, W).as_text()) == {}
    mapped = jax.shard_map(kernels.conv, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P("data"))
    assert calls(jax.jit(mapped).lower(x, W).as_text()) == ONE


@pytest.mark.usefixtures("everywhere")
@pytest.mark.devices(4)
def test_where_shard_map_leaves_an_axis_to_the_partitioner_there_is_none():
    both = jax.make_mesh((2, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    specs = {"in_specs": (P("data"), P()), "out_specs": P("data")}
    some = jax.shard_map(kernels.conv, mesh=both, axis_names={"data"}, **specs)
    every = jax.shard_map(kernels.conv, mesh=both, **specs)
    assert calls(jax.jit(some).lower(X, W).as_text()) == {}
    assert calls(jax.jit(every).lower(X, W).as_text()) == ONE


@pytest.mark.devices(2)
def test_inside_shard_map_they_are_right():
    need("float32")
    f = jax.shard_map(kernels.conv, mesh=mesh(), in_specs=(P("data"), P()), out_specs=P("data"))

    def loss(f, x, w):
        return (f(x, w) ** 2).sum()

    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(v.shape).astype(np.float32) for v in (X, W))
    assert calls(jax.jit(jax.grad(partial(loss, f), (0, 1))).lower(x, w).as_text())
    here = jax.jit(jax.grad(partial(loss, f), (0, 1)))(x, w)
    alone = jax.jit(jax.grad(partial(loss, kernels.conv), (0, 1)))(x, w)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-3), here, alone)


def _gradient(x, w):
    return jax.grad(lambda x, w: (kernels.conv(x, w, padding=1) ** 2).sum(), (0, 1))(x, w)


TRANSFORMED = {
    "jvp": lambda x, w: jax.jvp(partial(kernels.conv, padding=1), (x, w), (x, w))[1],
    "grad": _gradient,
    "grad of grad": lambda x, w: jax.grad(lambda x, w: sum((g**2).sum() for g in _gradient(x, w)), (0, 1))(x, w),
    "vmap": lambda x, w: jax.vmap(_gradient)(jnp.stack([x, x + 1]), jnp.stack([w, w - 1])),
    "scan": lambda x, w: jax.lax.scan(lambda w, _: (w - 1e-3 * _gradient(x, w)[1], None), w, length=3)[0],
    "remat": lambda x, w: jax.grad(lambda w: (jax.checkpoint(kernels.conv)(x, w) ** 2).sum())(w),
}


@DTYPES
@pytest.mark.parametrize("name", TRANSFORMED)
def test_transformations_are_as_without_calls(name, dtype, monkeypatch):
    need(dtype)
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((4, 32, 16)), dtype)
    w = jnp.asarray(rng.standard_normal((3, 16, 32)) / 7, dtype)
    f = TRANSFORMED[name]
    program = jax.jit(lambda x, w: f(x, w)).lower(x, w)
    assert calls(program.as_text())
    with_calls = program.compile()(x, w)
    monkeypatch.setattr(onednn, "_works", lambda dtype: False)
    program = jax.jit(lambda x, w: f(x, w)).lower(x, w)
    assert not calls(program.as_text())
    for a, b in zip(jax.tree.leaves(with_calls), jax.tree.leaves(program.compile()(x, w)), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        scale = np.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5 if dtype == "float32" else 0.02)


def test_many_at_once_in_many_threads_end():
    """Calls share the threads that run them."""
    need("float32")
    xs, ws = [jnp.ones((2, 64, 16))] * 12, [jnp.ones((3, 16, 16))] * 12

    @jax.jit
    def f(xs, ws):
        return sum(kernels.conv(x + i, w).sum() for i, (x, w) in enumerate(zip(xs, ws, strict=True)))

    assert calls(f.lower(xs, ws).as_text())["convolution"] == 12
    f(xs, ws).block_until_ready()
    threads = [
        threading.Thread(target=lambda: [f(xs, ws).block_until_ready() for _ in range(20)], daemon=True)
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()


def test_a_run_goes_on_on_another_processor(monkeypatch):
    """Its fingerprint is that of a program without calls, on either, whichever was lowered first."""
    net, optimizer = layers.chain(layers.conv(16, 3), layers.conv(16, 3)), optimizers.sgd(0.1)
    params, state = net.init(0, X)

    def step(params):
        loss = lambda params: losses.mse(net.apply(params, state, X, train=False)[0], 0 * X[:, 4:])  # noqa: E731
        return optimizer.update(jax.grad(loss)(params), optimizer.init(params), params)[0]

    step = jax.jit(step)
    marks = []
    for works in (True, False):
        monkeypatch.setattr(onednn, "_works", lambda dtype, works=works: works)
        assert ("__onednn" in jax.jit(lambda params: step(params)).lower(params).as_text()) == works
        marks.append(identity.of_program(step, params))
    assert marks[0] == marks[1]


@DTYPES
def test_the_gradients_of_a_network_are_as_without_calls(dtype, monkeypatch):
    """With strides, groups and dilation; in mixed precision too."""
    need(dtype)
    net = layers.chain(
        layers.conv(32, 5, strides=2),
        layers.conv(32, 3, dilation=2, groups=4),
        layers.conv_transpose(16, 4, strides=2),
    )
    net = net if dtype == "float32" else layers.mixed_precision(net)
    x = jax.random.normal(jax.random.key(0), (4, 64, 16))
    params, state = net.init(0, x)

    def gradient(params):
        return jax.grad(lambda params: (net.apply(params, state, x, train=False)[0] ** 2).mean())(params)

    with_calls = jax.jit(lambda params: gradient(params))(params)
    monkeypatch.setattr(onednn, "_works", lambda dtype: False)
    without = jax.jit(lambda params: gradient(params))(params)
    for a, b in zip(jax.tree.leaves(with_calls), jax.tree.leaves(without), strict=True):
        scale = jnp.abs(b).max()
        np.testing.assert_allclose(a / scale, b / scale, atol=1e-5 if dtype == "float32" else 0.03)


@pytest.mark.usefixtures("everywhere")
def test_what_is_lowered_for_all_is_portable():
    assert not onednn.ready("float32")  # outside of a lowering
    assert calls(jax.jit(lambda x, w: kernels.conv(x, w)).lower(X, W).as_text()) == ONE
    with lowering.onednn.portable():
        assert "__onednn" not in jax.jit(lambda x, w: kernels.conv(x, w)).lower(X, W).as_text()


def test_products_are_likely_where_a_program_may_have_calls(monkeypatch):
    """As tracing sees it, which picks JAX's own product elsewhere: each condition alone turns them off."""
    patches = {
        "portable": None,
        "kept in files": (onednn, "_in_files", lambda: True),
        "turned off": (os, "environ", {onednn.SWITCH: "0"}),
        "another jaxlib": (onednn, "_minor_version", lambda: 99),
        "convolutions alone": (onednn, "_instructions", lambda: {"avx2"}),
        "an accelerator": (jax, "default_backend", lambda: "gpu"),
    }
    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx2", "avx512f"})
    monkeypatch.setattr(onednn, "_minor_version", lambda: 12)
    monkeypatch.setattr(jax, "default_backend", lambda: "cpu")
    monkeypatch.delenv(onednn.SWITCH, raising=False)
    assert [onednn.likely(dtype) for dtype in ("float32", "bfloat16", "float64")] == [True, False, False]
    for name, patch in patches.items():
        with monkeypatch.context() as patched, onednn.portable() if patch is None else contextlib.nullcontext():
            if patch is not None:
                patched.setattr(*patch)
            assert not onednn.likely("float32"), name
    assert onednn.likely("float32")


@pytest.mark.parametrize("lacking", ["transpose_a", "transpose_b", "pairs", None])
def test_a_product_that_lacks_a_slots_call_is_not_used(monkeypatch, lacking):
    def product(a, b, **transposed):
        if lacking in transposed or (lacking == "pairs" and a.ndim > 2):
            raise RuntimeError("no such call")
        return (a.mT if "transpose_a" in transposed else a) @ (b.mT if "transpose_b" in transposed else b)

    monkeypatch.setattr(onednn, "_instructions", lambda: {"avx512f"})
    monkeypatch.setattr(onednn, "convolution", lambda x, w, numbers: forms.plain("y", x, w, numbers))
    monkeypatch.setattr(onednn, "product", product)
    assert onednn._tried.__wrapped__("float32") == (lacking is None)
