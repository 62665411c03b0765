"""Many images from a table of rows: on one device in this process, or on any number of them with Ray."""
