"""A task from shapes to a page: `python experiments/run.py --task=deepsdf …` is `jonet run --task=deepsdf …`."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # works from any folder, installed or not
    from jonet.__main__ import main
    from jonet.interrupt import leave

    leave(main(["run", *sys.argv[1:]]))
