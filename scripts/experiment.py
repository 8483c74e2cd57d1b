"""Compare variants of the settings of a training: the same as `convlstm-wx experiment variants`.

    convlstm-wx sample                                         # once: the region that the example is about
    python scripts/experiment.py scripts/experiments/width.toml

Every variant is trained with every seed, and chosen by the validation months. Stopped at any moment, the same command
goes on where it was; variants and seeds may be added later. Results: table.md and CSV files in the output folder.
"""

import sys

from convlstm_wx.cli import main

if __name__ == "__main__":
    sys.exit(main(["experiment", "variants", *sys.argv[1:]]))
