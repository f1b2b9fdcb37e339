"""What is done with an artifact home as a whole: looked over, copied to an object store, its run records explained."""
