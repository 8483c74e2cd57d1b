"""Train a ConvLSTM on a regional grid: the same as `convlstm-wx train`.

The shortest way, on whatever the machine has (CUDA, else Apple's MPS, else the CPU):

    python train_convlstm.py --data regional.nc --device auto --use-amp

With upstream regions for a target box (degrees: south north west east):

    python train_convlstm.py --data regional.nc --target-region 40 55 0 14.5 --include-upstream

Go on after a stop, or with more epochs:

    python train_convlstm.py --data regional.nc --resume checkpoints/regional/last.pt --num-epochs 30

Less memory, the same result (2 x 4 windows per optimiser step instead of 8):

    python train_convlstm.py --data regional.nc --batch-size 2 --gradient-accumulation-steps 4

Several GPUs of one machine:

    torchrun --nproc-per-node 4 train_convlstm.py --data regional.nc --use-amp

`--help` lists every option with its default. What comes out lies in checkpoints/<name of the data>/: best.pt for
forecasts, last.pt to go on from, history.csv and training.log to read.
"""

import sys

from convlstm_wx.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
