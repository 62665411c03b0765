"""The maths of the model. Nothing here imports anything of the library but its own neighbours."""
