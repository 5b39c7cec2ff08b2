#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Checks and measures a CUDA machine within 10 minutes, and writes a report that can be added to docs/benchmarks/.
#
#   scripts/gpu_check.sh [--cpu] [--out DIR]
#
# --cpu rehearses, in about 3 minutes, every stage that needs no GPU. PYTHON names the interpreter; it needs the
# packages of training, and pytest for the stage of tests. Exit status 1 if any stage failed.
set -euo pipefail

usage() {
  echo "usage: scripts/gpu_check.sh [--cpu] [--out DIR]" >&2
  exit 2
}

device=cuda
out=runs/gpu_check
while (($#)); do
  case $1 in
    --cpu) device=cpu ;;
    --out=*) out=${1#--out=} ;;
    --out) (($# > 1)) || usage; out=$2; shift ;;
    *) usage ;;
  esac
  shift
done
mkdir -p "$out"
out=$(cd "$out" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Kernels are compiled once, for all stages, in a new folder, so that the build is shown and timed.
export TORCH_EXTENSIONS_DIR=$work/extensions PYTHONUNBUFFERED=1
failed=0

record() { # name result seconds limit note
  printf '%s\t%s\t%s\t%s\t%s\n' "$@" >>"$work/stages.tsv"
  printf '%-10s %-9s %4s s  %s\n' "$1" "$2" "$3" "$5"
}

# Runs a stage under its time limit. A failure is shown and recorded, and the next stage runs.
stage() { # name limit note command...
  local name=$1 limit=$2 note=$3 start=$SECONDS status=0 result=ok
  shift 3
  if [[ -t 1 ]]; then printf '%-10s ...\r' "$name"; fi
  timeout --kill-after=10 "$limit" "$@" >"$work/$name.out" 2>"$work/$name.err" || status=$?
  if ((status == 124 || status == 137)); then result="timed out"; elif ((status)); then result=failed; fi
  record "$name" "$result" $((SECONDS - start)) "$limit" "$note"
  if ((status)); then
    failed=1
    tail -n 8 "$work/$name.out" "$work/$name.err" | sed 's/^/    /'
  fi
}

skip() { # name reason
  record "$1" skipped 0 0 "$2"
}

# Test files with GPU tests; others may need packages that are not installed.
gpu_tests() { grep -rl --include='test_*.py' 'mark\.gpu' tests; }

stage facts 30 "processor, GPU, versions" "$python" -m scripts.gpu_report facts "$work/facts.json"

if [[ $device == cuda ]]; then
  stage build 120 "CUDA kernels, from scratch" "$python" -m scripts.gpu_report build
else
  skip build "needs a GPU"
fi

if ! "$python" -c 'import pytest' 2>/dev/null; then
  skip tests "pytest is not installed"
elif [[ $device == cuda ]]; then
  mapfile -t files < <(gpu_tests)
  stage tests 90 "pytest -m gpu" "$python" -m pytest -q -m gpu -p no:cacheprovider "${files[@]}"
else
  stage tests 90 "golden operations, losses in half precision" "$python" -m pytest -q -p no:cacheprovider \
    tests/torch_utils/ops/test_golden_ops.py tests/training/test_loss_precision.py
fi

mkdir "$work/sweep"
stage sweep 45 "every operation against its reference" \
  "$python" -m tests.torch_utils.ops.sweep --device="$device" --json="$work/sweep/sweep.json"

sanitizer=$(command -v compute-sanitizer || ls /usr/local/cuda/bin/compute-sanitizer 2>/dev/null || true)
if [[ $device == cpu ]]; then
  skip sanitizer "needs a GPU"
elif [[ -z $sanitizer ]]; then
  skip sanitizer "compute-sanitizer is not installed"
elif ! "$sanitizer" --error-exitcode 9 "$python" -c 'import torch; torch.zeros(1, device="cuda")' >/dev/null 2>&1; then
  skip sanitizer "compute-sanitizer does not work on this machine"
else
  # A separate allocation for every tensor, so that an access beyond it is detected.
  export PYTORCH_NO_CUDA_MEMORY_CACHING=1
  stage sanitizer 60 "out-of-bounds and misaligned accesses of the kernels" \
    "$sanitizer" --tool memcheck --error-exitcode 9 "$python" -m tests.torch_utils.ops.sweep --device=cuda --small
  unset PYTORCH_NO_CUDA_MEMORY_CACHING
fi

quick=()
training=(--precisions=fp32,fp16,bf16 --seconds=26 --cbase=1 --workers=3 --metric=fid2k_full --iterations=1000000)
images=2000
if [[ $device == cpu ]]; then
  quick=(--res=64 --cbase=0.1 --precisions=fp32)
  training=(--precisions=fp32,bf16 --iterations=4 --cbase=256 --metric=fid1k_full)
  images=1000
fi
stage benchmark 95 "python -m benchmarks --quick" \
  "$python" -m benchmarks --quick --device="$device" --out="$work/benchmark" "${quick[@]}"

stage data 20 "the digits at 64x64" "$python" dataset_tool.py --source=data/mnist5k-32x32.zip \
  --dest="$work/digits64.zip" --width=64 --height=64 --max-images="$images"
stage training 110 "the digits at 64x64 in each precision" "$python" -m scripts.precision_check \
  --outdir="$work/training" --data="$work/digits64.zip" --device="$device" --seeds=0 "${training[@]}"

stage biggan 25 "a short BigGAN run on the digits" "$python" train.py --outdir="$work/biggan" --cfg=biggan-auto \
  --data=data/mnist5k-32x32.zip --cond=1 --ch=8 --kimg=1 --snap=1 --metrics=none --device="$device"

"$python" -m scripts.gpu_report assemble "$work" "$out"
exit "$failed"
