"""From overrides to a checked configuration; torch is not imported here."""
