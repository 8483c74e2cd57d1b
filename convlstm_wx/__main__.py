"""`python -m convlstm_wx` is `convlstm-wx`."""

import sys

from convlstm_wx.cli import main

sys.exit(main())
