"""``python -m signllm``: the command line without an installed script, as the ranks of a run are started."""

from __future__ import annotations

import sys

from signllm.cli import main

if __name__ == "__main__":
    sys.exit(main())
