"""What machines talk to: each flow of a slot with its bytes, its name and its verdict. No content is kept."""
