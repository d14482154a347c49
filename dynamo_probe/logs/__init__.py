"""What a run leaves on disk for those who look at it: recorded, read back, and put into panels."""
