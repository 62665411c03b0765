"""How the demo checkpoint is made: its pictures, its words, its training and its evaluation."""
