#!/bin/bash
# Shards in a shell loop: one process for each GPU of this machine.
# examples/cluster/shards.sh clip.mp4 painting.png out/clip_stylized.mp4
set -euo pipefail
clip=$1 style=$2 out=$3
count=$(nvidia-smi --list-gpus | wc -l)

pids=()
for ((i = 0; i < count; i++)); do
  CUDA_VISIBLE_DEVICES=$i std stylize video "$clip" --style "$style" -o "$out" --shard "$i/$count" &
  pids+=($!)
done
failed=0
for pid in "${pids[@]}"; do
  wait "$pid" || failed=1
done
((failed == 0)) || { echo "a shard failed: run the same command again" >&2; exit 1; }
std join "$out"
