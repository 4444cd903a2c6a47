"""The method in other people's training loops: docs/foreign-loops.md."""
