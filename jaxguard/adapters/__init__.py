"""From a live model of another library to a `Network`, and back; one file per library, imported when first used."""
