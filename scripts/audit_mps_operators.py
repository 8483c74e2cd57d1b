"""Would every operator of training and forecasting run on Apple's MPS? Asked on any machine; exit code 1 if not.

python scripts/audit_mps_operators.py
"""

import sys

from convlstm_wx.commands.auditing import main

if __name__ == "__main__":
    sys.exit(main())
