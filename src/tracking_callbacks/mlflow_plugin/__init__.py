"""Makes every program that speaks MLflow durable: its tracking URI is ``journal+`` followed by the real one.

MLflow finds these modules by entry points; nothing here is imported directly. This and `flavors` are the only parts of
the training side that import MLflow.
"""

__all__: list[str] = []
