#!/bin/bash
# Train on 2 machines with 4 GPUs each; two minutes before the time limit, save and queue again.
#   sbatch examples/slurm.sh photos/ runs/photos
#SBATCH --job-name=loglik
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
#SBATCH --open-mode=append
set -u
data=$1
run=$2

# srun starts one process for each GPU, and loglik reads from it how many there are and which one it is. Where Slurm has
# started the job again, SLURM_RESTART_COUNT is above 0 and the run continues from its newest checkpoint.
srun --kill-on-bad-exit=1 loglik fit "$data" --model diffusion --strategy ddp --set max_epochs=100 --out "$run" &
training=$!

save_and_requeue() {
    kill -TERM "$training"  # srun passes it on; loglik finishes the step, writes a checkpoint and ends
    wait "$training"
    scontrol requeue "$SLURM_JOB_ID"
}
trap save_and_requeue USR1

wait "$training"
