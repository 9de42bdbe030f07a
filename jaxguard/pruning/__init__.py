"""What defenses that cut channels share: learned gates, a threshold for them, and cuts made one after the other."""
