"""Hugging Face and ModelScope: what lies there, and how it gets here, checked."""
