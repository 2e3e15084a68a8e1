"""A pre-training run whose process is killed in its third step."""

KILLED_RUN = """
import os, signal, sys
from voxelfm_hf.training.pretrain import loop as pretrain
step = pretrain.optimiser_step
def killed(*words, **named):
    if named["step"] == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(*words, **named)
pretrain.optimiser_step = killed
sys.exit(pretrain.main(sys.argv[1:]))
"""
