"""Where the files of named data sets come from."""
