"""Entry point of the heavy process: does the tasks that it reads from stdin, and ends when stdin does."""

import sys
from pathlib import Path

try:
    from tracking_callbacks._delivery.heavy.work import main
except ModuleNotFoundError as error:
    if error.name not in ("tracking_callbacks", "tracking_callbacks._delivery"):
        raise
    sys.path.append(str(Path(__file__).parents[3]))
    from tracking_callbacks._delivery.heavy.work import main

if __name__ == "__main__":
    sys.exit(main())
