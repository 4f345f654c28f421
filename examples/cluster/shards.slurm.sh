#!/bin/bash
# Shards on SLURM, without an engine: 16 tasks with a GPU each; each takes its share of the units.
# sbatch examples/cluster/shards.slurm.sh
# Then, when all have ended: std join /shared/out/clip_stylized.mp4
#SBATCH --job-name=std
#SBATCH --array=0-15
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue

set -euo pipefail
source /shared/venv/bin/activate
export HF_HOME=/shared/huggingface TMPDIR=${SLURM_TMPDIR:-/tmp}

# the number of the shard comes from SLURM_ARRAY_TASK_ID and SLURM_ARRAY_TASK_COUNT
exec std stylize video /shared/clip.mp4 --style /shared/painting.png -o /shared/out/ \
  --shard auto --offline
