"""What the original gateway, and the program it comes from, keep on disk: read, and put into the store. For `mayros import`."""
