"""The checks of others, on the pack as the registry would publish it."""
