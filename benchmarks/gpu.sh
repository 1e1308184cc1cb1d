#!/bin/sh
# What is to be measured on a GPU, cut off after ten minutes, for one card and 16 cores: `sh benchmarks/gpu.sh`.
# Needs jax with CUDA, PyTorch, Flax and the packages of `jaxnet[test]`. What was measured lies in benchmarks/results,
# what the tests said in gpu-tests.txt.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
timeout 150 python3 -m benchmarks vocoder-step --network MelGAN-size --library ours flax torch "torch, CUDA graph"
timeout 170 python3 -m benchmarks kernels --mode gradient --jobs 14 --seconds 0.03
timeout 60 python3 -m benchmarks training --part sweeps --problem digits-mlp digits-conv --quick
timeout 220 python3 -m pytest -q -n 15 -p no:benchmark > gpu-tests.txt 2>&1
tail -30 gpu-tests.txt
