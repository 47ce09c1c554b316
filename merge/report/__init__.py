"""What a merge says about itself: its report, the conflict map, the sensitivity to the prior, and comparisons."""
