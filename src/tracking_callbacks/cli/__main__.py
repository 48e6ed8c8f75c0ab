"""Runs the command line as ``python -m tracking_callbacks.cli``."""

from tracking_callbacks.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    main(prog_name="tracking-callbacks")
