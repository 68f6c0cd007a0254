"""Rule-based rewards (spec §3): pure functions of a trajectory."""
