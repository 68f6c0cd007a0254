"""What one episode is: grammar, prompts, tokens, episode, workflows. No Ray, no engine, no torch model."""
