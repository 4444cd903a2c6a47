"""Band-limited sound files in, full-band ones out: what lies around the model of super-resolution."""
