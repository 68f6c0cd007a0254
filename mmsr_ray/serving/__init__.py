"""The agent as a service: the episode that trains and evaluates, behind HTTP on Ray Serve."""
