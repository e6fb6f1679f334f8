#!/bin/bash
# Look at the nodes before the queue does: versions, GPUs, disks, shards read from every rank, the bandwidth between the ranks.
#
#   mkdir -p slurm-logs
#   sbatch --nodes=2 --gpus-per-node=8 [--account=... --partition=...] slurm/doctor.sh runs/doctor shards=[data/shards/X]
#
# Ends with status 2 when something is wrong; the log says what, and the remedy. Site settings: see slurm/env.sh.
#SBATCH --job-name=ttd-doctor
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
#SBATCH --time=00:10:00
#SBATCH --signal=B:USR1@60
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-logs/%x-%j.out
set -euo pipefail
run_dir=${1:?give the folder of its findings first, as runs/doctor}
shift
export TTD_LAUNCH=${TTD_LAUNCH:-launch/ddp.yaml} # nothing is trained: no DeepSpeed
# Slurm runs a copy of this script from its spool folder: the checkout is where sbatch was called.
# shellcheck source=slurm/env.sh
. "${TTD_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/env.sh"
ttd_job ttd/doctor.py "$run_dir" "processes=$((TTD_NODES * TTD_GPUS))" "$@"
