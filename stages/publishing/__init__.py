"""Publishing: the bundle, its model card, whether it replaces the one in use, how MLflow serves it."""
