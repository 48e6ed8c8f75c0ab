"""Access to an MLflow store: the client, first creation of local SQLite stores, and the meaning of failures."""
