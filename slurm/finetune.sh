#!/bin/bash
# Fine-tune the conditioning bridge and the base's adapters on paired shards, over all GPUs of the job.
#
#   mkdir -p slurm-logs
#   sbatch [--account=... --partition=... --nodes=N --gpus-per-node=G] slurm/finetune.sh RUN_DIR --config configs/finetune/X.yaml [key.path=value ...]
#
# Stops and saves before the time limit, requeues itself and resumes; so does a step that failed, at most MAX_RESTARTS times.
# scancel is final. Site settings: see slurm/env.sh.
#SBATCH --job-name=ttd-finetune
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=64G
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-logs/%x-%j.out
set -euo pipefail
run_dir=${1:?give the run folder first, then --config FILE and overrides}
shift
# Slurm runs a copy of this script from its spool folder: the checkout is where sbatch was called.
# shellcheck source=slurm/env.sh
. "${TTD_ROOT:-${SLURM_SUBMIT_DIR:-$PWD}}/slurm/env.sh"
ttd_job ttd/finetune.py "$run_dir" "$@"
