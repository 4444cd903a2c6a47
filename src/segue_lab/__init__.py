"""The laboratory: studies, the training of the note classifier, releases. It imports segue, never the reverse."""
