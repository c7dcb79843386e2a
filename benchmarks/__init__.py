"""Time, memory and accuracy of roots and their gradients: rootdiff beside other libraries and beside the floor."""
