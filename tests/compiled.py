"""A layer as one program: run operation by operation, each operation is a program of its own, and compiling is most of
what tests cost. That layers do the same both ways is tested in `tests/layers/test_layers_table.py`, one of each kind,
and that containers do in `tests/layers/test_containers.py`.
"""

import jax


def apply(layer, params, state, x, *, train, key=None):
    """``layer.apply``, compiled; what it raises for values that it sees outside of programs alone, it does not here."""
    return jax.jit(layer.apply, static_argnames="train")(params, state, x, train=train, key=key)
