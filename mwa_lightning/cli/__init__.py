"""The command line: composes and checks a configuration, then hands it on. Nothing here imports torch."""
