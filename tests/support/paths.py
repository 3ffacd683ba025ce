"""Where the checkout and its tests lie."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests" / "recorded"
SUPPORT = Path(__file__).parent
PYTHONPATH = os.pathsep.join([str(ROOT), str(SUPPORT)])  # for programs that tests start: jonet, and these modules
