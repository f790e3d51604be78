"""What each part of the method brings: a recipe without it, over seeds, as one table and one figure."""
