"""The delivery process: reads journals, sends what they hold to MLflow, and sets the true status of each run."""
