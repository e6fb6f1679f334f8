# shellcheck shell=bash disable=SC2034
# An example of the file that TTD_SITE names: everything that belongs to a site and to nobody else. Copy it, keep the copy out
# of the repository, and `export TTD_SITE=/path/to/copy` where you call sbatch. Every line is a choice; the defaults run anywhere.
# Account, partition and quality of service are given to sbatch: SBATCH_ACCOUNT, SBATCH_PARTITION, SBATCH_QOS, or its options.

# module load cuda/12.8 gcc/12

# --- where things are ---
# export HF_HOME=/shared/huggingface      # the hub's cache, filled on a login node; compute nodes stay offline
# export WANDB_MODE=offline               # no network on the nodes: `wandb sync` the run folder from a login node afterwards
# export WANDB_DIR=/scratch/$USER/wandb

# --- network: set only what the site's manual says; a wrong interface hangs, none is usually found ---
# export NCCL_SOCKET_IFNAME=ib0           # the interface for NCCL's set-up and, without InfiniBand, its data
# export GLOO_SOCKET_IFNAME=ib0           # the same for gloo (CPU ranks, DeepSpeed's barriers)
# export NCCL_IB_HCA=mlx5                 # which InfiniBand adapters
# export NCCL_DEBUG=INFO                  # says which of them were chosen; WARN is the default here
# The rendezvous is MASTER_ADDR (the job's first node) and MASTER_PORT (from the job's number); nothing to set.

# --- containers: one of the two ---
# TTD_SRUN_ARGS="--container-image=/shared/ttd.sqsh --container-mounts=$PWD:$PWD --container-workdir=$PWD"   # pyxis
# TTD_WRAP="apptainer exec --nv --bind $PWD /shared/ttd.sif"                                                  # apptainer
