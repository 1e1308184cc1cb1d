"""A speech vocoder: from a mel spectrogram back to the sound, trained on a laptop's CPU."""
