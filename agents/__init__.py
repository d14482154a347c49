"""Reinforcement learning agents, a readable file each, on the public API of dynamo_probe."""
