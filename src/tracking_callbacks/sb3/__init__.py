"""Tracking for Stable-Baselines3 and sb3-contrib.

    from tracking_callbacks.sb3 import MLflowSB3Callback

    PPO("MlpPolicy", env).learn(100_000, callback=MLflowSB3Callback())

This package and `tracking_callbacks.flavors` are the only parts that import stable_baselines3.
"""

from tracking_callbacks.sb3.callback import MLflowSB3Callback

__all__ = ["MLflowSB3Callback"]
