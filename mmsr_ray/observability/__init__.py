"""What a run shows of itself: the live line of its job, trackers, the report of its folder, and its episodes to browse."""
