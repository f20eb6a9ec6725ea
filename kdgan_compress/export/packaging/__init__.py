"""What is written with a detector: model card, call examples, files for phones, a web page."""
