"""Entry point of the delivery process; run by path, so that it works wherever the trainer found the package."""

import gc
import sys
from pathlib import Path

gc.disable()  # until MLflow is imported (`DeliveryProcess`): a fifth of that time goes into scanning lasting objects

try:
    from tracking_callbacks._delivery.process import main
except ModuleNotFoundError as error:
    if error.name not in ("tracking_callbacks", "tracking_callbacks._delivery"):
        raise
    sys.path.append(str(Path(__file__).parents[2]))
    from tracking_callbacks._delivery.process import main

if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
