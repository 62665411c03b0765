"""How the demo checkpoint is made: its images, its words, its training and its evaluation."""
