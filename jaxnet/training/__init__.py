"""Training (4.6): the compiled step, the loop around it, and what keeps a run safe."""
