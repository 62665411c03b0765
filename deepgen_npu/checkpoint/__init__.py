"""The published folder: what it must contain, and its weights."""
