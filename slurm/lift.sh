#!/bin/bash
# Lift pictures to meshes (describe, refine, lift, score): an array of jobs that divide the items among them.
#
#   mkdir -p slurm-logs
#   sbatch [--account=... --partition=... --nodes=N --gpus-per-node=G] slurm/lift.sh RUN_DIR --config configs/lift/X.yaml [key.path=value ...]
#
# An array: its tasks share the run folder, each takes the next items that nobody works on, and what a task leaves behind is
# taken over. A task that failed is submitted again alone: sbatch --array=3 ... with the same words.
# Stops before the time limit, after the batch of items at hand, which must fit into the 15 minutes of --signal; requeues itself and
# goes on; so does a step that failed, at most MAX_RESTARTS times.
# scancel is final. Site settings: see slurm/env.sh.
#SBATCH --job-name=ttd-lift
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@900
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-logs/%x-%A_%a.out
#SBATCH --array=0-3
set -euo pipefail
run_dir=${1:?give the run folder first, then --config FILE and overrides}
shift
export TTD_LAUNCH=${TTD_LAUNCH:-launch/ddp.yaml} # nothing is trained: no DeepSpeed
# Slurm runs a copy of this script from its spool folder: the checkout is where sbatch was called.
# shellcheck source=slurm/env.sh
. "${TTD_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/env.sh"
[ "${SLURM_ARRAY_TASK_COUNT:-0}" -lt 1 ] || set -- "$@" items.schedule=claimed # who is free takes the next items
ttd_job ttd/lift.py "$run_dir" "$@"
