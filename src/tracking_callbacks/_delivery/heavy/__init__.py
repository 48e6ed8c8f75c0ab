"""Work that needs large libraries, in a process that comes when there is some and goes when there is none.

Pictures need matplotlib, and artifact roots that the server does not proxy need MLflow's client. The delivery process
itself imports neither, so it stays small for as long as the training runs.
"""

__all__: list[str] = []
