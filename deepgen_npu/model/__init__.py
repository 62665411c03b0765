"""The maths of the model. Modules here import nothing else of this library."""
