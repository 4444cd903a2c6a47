"""What the verbs, the demo and others do with a whole run: train it, go on, sample it, measure it."""
