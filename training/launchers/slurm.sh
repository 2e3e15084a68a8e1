#!/bin/bash
# Two nodes of eight GPUs, one task a GPU (not run by the authors: adapt it to your cluster).
# Ten minutes before the end Slurm sends USR1 to every task; the run saves, ends cleanly, and the job queues again.
# Every start is the same command: a run found in the folder goes on.
#   sbatch training/launchers/slurm.sh base /data/shards /runs/base
#SBATCH --job-name=voxelfm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=12
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@600
#SBATCH --requeue

export RECIPE=$1 DATA=$2 RUN=$3
export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1) MASTER_PORT=29500

# No launcher in between: the signal must reach the processes that save.
srun bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS \
  exec python -m voxelfm_hf.training.pretrain "$RECIPE" --data "$DATA" --output_dir "$RUN"'

LAST=$(ls "$RUN/checkpoints" | tail -n 1)
TOTAL=$(python -c "import sys, yaml; print(yaml.safe_load(open(sys.argv[1]))['run']['total_steps'])" "$RUN/recipe.yaml")
[ "$LAST" = "step-$(printf %08d "$TOTAL")" ] || scontrol requeue "$SLURM_JOB_ID"
