"""What is not needed to draw an image: diagnosis, measurements, random models."""
