"""Is there a backdoor in it? What weights and answers give away, and how it is turned into one calibrated score."""
