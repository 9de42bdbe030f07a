"""A hundred thousand checkpoints: found, read ahead, stacked, scored by one program per structure, and kept.

discovery -> reading -> structure (which rows share a program) -> scoring -> stream -> store -> scan
"""
