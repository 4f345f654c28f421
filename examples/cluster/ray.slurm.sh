#!/bin/bash
# A Ray cluster for the time of one job: 4 nodes with 8 GPUs each.
# sbatch examples/cluster/ray.slurm.sh
#SBATCH --job-name=std
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00

set -euo pipefail
source /shared/venv/bin/activate
export HF_HOME=/shared/huggingface TMPDIR=${SLURM_TMPDIR:-/tmp}
RAY_AUTH_TOKEN=$(openssl rand -hex 32)   # one token for all nodes of this job
export RAY_AUTH_TOKEN

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun ray symmetric-run --address "$head:6379" --min-nodes "$SLURM_NNODES" -- \
  std stylize video /shared/films/ --style /shared/painting.png -o /shared/out/ \
    --cluster auto --offline
