"""The annotation files of published data sets, and tables of one's own."""
