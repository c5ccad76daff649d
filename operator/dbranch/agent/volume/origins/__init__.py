"""How the data of a branch comes to be, one file for each origin."""
