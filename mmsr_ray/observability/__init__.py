"""What a run shows of itself: the live line of its job, trackers, and the report of its folder."""
