"""Publishing: whether a new model is better than the one in use, and what is handed out."""
