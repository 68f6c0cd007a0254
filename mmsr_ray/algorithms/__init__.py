"""How the policy learns: GRPO as an RLlib Algorithm, and its supervised warm start."""
