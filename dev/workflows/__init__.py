"""What makes the sample workflows, their thumbnails and the images of the help pages."""
