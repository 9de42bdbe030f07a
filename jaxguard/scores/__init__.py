"""What scans and defenses share: channel bounds, features of weights, responses to noise."""
