"""Downloads from Hugging Face and ModelScope, with every answer checked."""
