"""Rollouts: a vLLM engine and the RLlib EnvRunner that runs episodes on it."""
