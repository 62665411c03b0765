"""The published folder: what it has to hold, and its weights."""
