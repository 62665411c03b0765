"""What is not needed to generate an image: diagnosis, measurements, random models."""
