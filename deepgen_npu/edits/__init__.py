"""What an edit left alone: how far it moved, what it changed, and the two put together."""
