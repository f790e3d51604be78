"""``python -m signllm``: the command line without an installed script, as the ranks of a run are started."""

from __future__ import annotations

import sys

from signllm.cli import main
from signllm.training.local_ranks import end_with_launcher

if __name__ == "__main__":
    end_with_launcher()
    sys.exit(main())
