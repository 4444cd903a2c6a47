"""What the verbs, the demo and others do with a whole run: train it, continue it, sample it, measure it."""
