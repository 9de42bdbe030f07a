"""Is there a backdoor in it? Features of networks, and how references make a verdict with an error rate of them.

A *look* is one kind of evidence: the weights, the responses to noise, or the triggers that a search finds.
records -> calibration -> profile; records, profile -> comparison -> judging -> findings
"""
