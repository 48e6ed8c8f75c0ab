"""The delivery process: reads journals, brings what they hold to MLflow, sets the runs' true status."""
