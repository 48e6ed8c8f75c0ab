"""Episodes of reinforcement learning, without an RL library: the episode tracker, returns, tables, equity curves."""
