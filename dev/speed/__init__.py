"""What the tables of docs/speed.md are made with: a module for each, which measures its baseline in the same run."""
