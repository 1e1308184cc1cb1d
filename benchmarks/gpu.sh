#!/bin/sh
# What is to be measured on a GPU, for one card and 16 cores: `sh benchmarks/gpu.sh`, or parts of it in ten minutes:
# `sh benchmarks/gpu.sh peers tests` and `sh benchmarks/gpu.sh kernels sweeps speedrun`.
# Needs jax with CUDA, PyTorch, Flax and the packages of `jaxnet[test]`; the speedrun its data set in fashion-mnist.
# What was measured lies in benchmarks/results, what the tests said in gpu-tests.txt: a run that is cut off says what
# had failed until then.
export XLA_PYTHON_CLIENT_PREALLOCATE=false PYTHONUNBUFFERED=1
for part in ${*:-peers kernels sweeps speedrun tests}; do
  case $part in
    peers)
      for dtype in bfloat16 float32; do  # each in a run of its own, so that a cut takes one
        timeout 110 python3 -m benchmarks vocoder-step --network MelGAN-size --dtype $dtype --library ours torch "torch, CUDA graph" --alone
        cp benchmarks/results/vocoder_step-*-partial.json "gpu-vocoder_step-$dtype.json"
      done
      ;;
    kernels) timeout 170 python3 -m benchmarks kernels --mode gradient --jobs 14 --seconds 0.03 ;;
    sweeps) timeout 90 python3 -m benchmarks training --part sweeps --problem digits-mlp digits-conv ;;
    speedrun) timeout 300 python3 -m benchmarks speedrun --data fashion-mnist --epochs 8 12 --rate 0.4 1.0 --best 94 ;;
    tests)
      timeout -s INT -k 20 330 python3 -m pytest -v -n 16 -p no:benchmark > gpu-tests.txt 2>&1
      grep -c PASSED gpu-tests.txt
      grep -E "^(FAILED|ERROR)" gpu-tests.txt
      ;;
    *) echo "no such part: $part; there are peers, kernels, sweeps, speedrun and tests" >&2 && exit 2 ;;
  esac
done
