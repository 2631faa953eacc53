"""Where the numbers lie: the folder format, stored types, and products with stored matrices."""
