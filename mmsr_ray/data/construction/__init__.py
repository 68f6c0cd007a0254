"""From a list of concepts to a search-balanced data set (spec §5.3): pure stages over candidates, and what carries them on Ray Data."""
