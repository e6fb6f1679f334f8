#!/bin/bash
# Run one command of the project on one node, without a launcher: merge shards, precompute targets, write the report, look with the
# doctor.
#
#   mkdir -p slurm-logs
#   sbatch [--account=... --partition=... --gpus-per-node=1] slurm/command.sh shards/precompute_targets.py --config configs/shards/X.yaml
#
# A job that was preempted is queued again by Slurm, and the command goes on with what is missing. Site settings: see slurm/env.sh.
#SBATCH --job-name=ttd-command
#SBATCH --nodes=1
#SBATCH --cpus-per-task=4
#SBATCH --mem=32G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-logs/%x-%j.out
set -euo pipefail
: "${1:?give a command of the project first, as shards/merge.py, then its arguments}"
# Slurm runs a copy of this script from its spool folder: the checkout is where sbatch was called.
# shellcheck source=slurm/env.sh
. "${TTD_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/env.sh"
ttd_header
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
ttd_python "$@"
