"""MLflow model flavors: how a trained model is saved so that it loads anywhere and predicts the same."""
