"""Where what was acked is kept."""
